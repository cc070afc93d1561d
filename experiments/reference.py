"""The reference implementation's ten runs on CIFAR-10, setting by setting, and the same on CIFAR-100 and Fashion-MNIST:
64,000 steps, random crop and flip; ConvNets by SGD in batches of 256, the ViT by Adam in batches of 512.

None was run to its end here. Top-1 of the last step with --epochs 3, on CIFAR-10 (JPEG), with seed 0, in bfloat16,
on an NVIDIA H200 (docs/experiments.md has the command, and what a CPU gave):

cifar10-vgg11                 40.42 % in 3 epochs
cifar10-vgg19-bn              24.35 % in 3 epochs
cifar10-resnet18              59.00 % in 3 epochs
cifar10-preactresnet18        76.58 % in 3 epochs
cifar10-resnext29-32x4d       42.61 % in 3 epochs
cifar10-se-resnet18           70.83 % in 3 epochs
cifar10-cbam-resnet18         71.73 % in 3 epochs
cifar10-mobilenet             57.34 % in 3 epochs
cifar10-shufflenet-g8         36.66 % in 3 epochs
cifar10-vit-tiny              34.33 % in 3 epochs
"""

from backbones.augment import crop_flip
from backbones.compose import on
from backbones.data import cifar10, cifar100, fashion_mnist
from backbones.experiment import Experiment, Use, use
from backbones.models.cbam_resnet import cbam_resnet18
from backbones.models.mobilenet import mobilenet
from backbones.models.preact_resnet import preactresnet18
from backbones.models.resnet import resnet18
from backbones.models.resnext import resnext29_32x4d
from backbones.models.se_resnet import se_resnet18
from backbones.models.shufflenet import shufflenet_g8
from backbones.models.vgg import vgg11, vgg19_bn
from backbones.models.vit import vit_tiny
from backbones.optim import adam, sgd
from backbones.optim.schedule import cosine


def _on_cifar10(model: Use, optim: Use, batch_size: int) -> Experiment:
    return Experiment(
        name=f"cifar10-{model.name}",
        data=use(cifar10),
        augment=use(crop_flip, padding=4),
        model=model,
        optim=optim,
        schedule=use(cosine, floor=0.01),
        steps=64_000,
        batch_size=batch_size,
        eval_every=1000,
        save_every=1000,
    )


_SGD = use(sgd, lr=0.1, momentum=0.9, weight_decay=5e-4)
_ADAM = use(adam, lr=1e-3, b1=0.9, b2=0.999, weight_decay=5e-5)

cifar10_vgg11 = _on_cifar10(use(vgg11), _SGD, 256)
cifar10_vgg19_bn = _on_cifar10(use(vgg19_bn), _SGD, 256)
cifar10_resnet18 = _on_cifar10(use(resnet18), _SGD, 256)
cifar10_preactresnet18 = _on_cifar10(use(preactresnet18), _SGD, 256)
cifar10_resnext29_32x4d = _on_cifar10(use(resnext29_32x4d), _SGD, 256)
cifar10_se_resnet18 = _on_cifar10(use(se_resnet18), _SGD, 256)
cifar10_cbam_resnet18 = _on_cifar10(use(cbam_resnet18), _SGD, 256)
cifar10_mobilenet = _on_cifar10(use(mobilenet), _SGD, 256)
cifar10_shufflenet_g8 = _on_cifar10(use(shufflenet_g8), _SGD, 256)
cifar10_vit_tiny = _on_cifar10(use(vit_tiny, patch_size=4), _ADAM, 512)

cifar100_vgg11 = on(cifar10_vgg11, cifar100)
cifar100_vgg19_bn = on(cifar10_vgg19_bn, cifar100)
cifar100_resnet18 = on(cifar10_resnet18, cifar100)
cifar100_preactresnet18 = on(cifar10_preactresnet18, cifar100)
cifar100_resnext29_32x4d = on(cifar10_resnext29_32x4d, cifar100)
cifar100_se_resnet18 = on(cifar10_se_resnet18, cifar100)
cifar100_cbam_resnet18 = on(cifar10_cbam_resnet18, cifar100)
cifar100_mobilenet = on(cifar10_mobilenet, cifar100)
cifar100_shufflenet_g8 = on(cifar10_shufflenet_g8, cifar100)
cifar100_vit_tiny = on(cifar10_vit_tiny, cifar100)

fashion_mnist_vgg11 = on(cifar10_vgg11, fashion_mnist)
fashion_mnist_vgg19_bn = on(cifar10_vgg19_bn, fashion_mnist)
fashion_mnist_resnet18 = on(cifar10_resnet18, fashion_mnist)
fashion_mnist_preactresnet18 = on(cifar10_preactresnet18, fashion_mnist)
fashion_mnist_resnext29_32x4d = on(cifar10_resnext29_32x4d, fashion_mnist)
fashion_mnist_se_resnet18 = on(cifar10_se_resnet18, fashion_mnist)
fashion_mnist_cbam_resnet18 = on(cifar10_cbam_resnet18, fashion_mnist)
fashion_mnist_mobilenet = on(cifar10_mobilenet, fashion_mnist)
fashion_mnist_shufflenet_g8 = on(cifar10_shufflenet_g8, fashion_mnist)
fashion_mnist_vit_tiny = on(cifar10_vit_tiny, fashion_mnist)
