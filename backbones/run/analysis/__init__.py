"""What a trained model does with images.

trained_model.py      a checkpoint -> a model and its weights
model_evaluation.py   metrics, confusion, calibration
features.py           images -> a table of features (feature_table.py); probe.py: how well they tell classes apart
explain.py            which parts of an image decide
augment_sheet.py      images before and after augmentation
pictures.py           images and captions as one picture
"""
