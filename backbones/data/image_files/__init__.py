"""A data set of image files: in a folder, a tar, a table or parquet.

listing.py         which files there are, of which class and split
cache.py           files kept between runs
listing_cache.py   listings kept between runs
images.py          the bytes of a file -> an image
reader.py          files -> images of the size that the model wants
workers.py         processes that read ahead of the step
decoded.py         decoded images kept on disk
dataset.py         all of it: `image_files`
"""

from backbones.data.image_files.dataset import image_files
