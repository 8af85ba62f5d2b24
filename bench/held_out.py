"""Layers of networks that `bench.cases` does not name: a look from outside at what was tuned on that table.

Whoever tunes looks at `bench.cases`; this table says what came of it elsewhere. A layer that turns out slow here is
mended by its class of problems, and stays here.
"""

from __future__ import annotations

from bench.shapes import conv, depthwise

HELD_OUT = (
    # Howard et al. 2019: large; small squeeze layers.
    conv("mobilenetv3-stem", 3, 224, 16, 3, stride=2, padding=1),
    conv("mobilenetv3-expand-56", 24, 56, 72, 1),
    conv("mobilenetv3-expand-112", 16, 112, 64, 1),
    depthwise("mobilenetv3-dw-56-5x5-s2", 72, 56, 5, stride=2),
    conv("mobilenetv3-project-14", 480, 14, 112, 1),
    conv("mobilenetv3-head", 960, 1, 1280, 1),
    conv("mobilenetv3-squeeze", 672, 1, 168, 1),
    # Tan and Le 2019 and 2021: EfficientNet B3 at 300 pixels, V2-S at 384.
    conv("efficientnetb3-expand-150", 24, 150, 144, 1),
    depthwise("efficientnetb3-dw-150-s2", 144, 150, 3, stride=2),
    depthwise("efficientnetb3-dw-75-5x5-s2", 192, 75, 5, stride=2),
    conv("efficientnetb3-project-19", 816, 19, 136, 1),
    conv("efficientnetv2-fused-192", 24, 192, 24, 3, padding=1),
    conv("efficientnetv2-fused-s2", 48, 96, 192, 3, stride=2, padding=1),
    # Simonyan and Zisserman 2014 has its like in detectors: Liu et al. 2015, Ren et al. 2015, Lin et al. 2016 and 2017.
    conv("ssd-conv6", 512, 19, 1024, 3, padding=6, dilation=6),
    conv("ssd-conv8_2", 256, 19, 512, 3, stride=2, padding=1),
    conv("ssd-boxes-38", 512, 38, 16, 3, padding=1),
    conv("rpn-scores", 512, 38, 9, 1),
    conv("fpn-lateral-56", 512, 56, 256, 1),
    conv("retinanet-boxes-28", 256, 28, 36, 3, padding=1),
    # Redmon et al. 2016 and their successors at 640 pixels.
    conv("yolov3-down-104", 128, 104, 256, 3, stride=2, padding=1),
    conv("yolov3-reduce-52", 256, 52, 128, 1),
    conv("yolov3-out-13", 1024, 13, 255, 1),
    conv("yolov5s-stem", 3, 640, 32, 6, stride=2, padding=2),
    conv("yolov5s-down-320", 32, 320, 64, 3, stride=2, padding=1),
    conv("yolov8n-c2f-160", 16, 160, 16, 3, padding=1),
    conv("yolov8n-sppf-20", 512, 20, 256, 1),
    # Huang et al. 2016, Iandola et al. 2016, Chollet 2016, Ma et al. 2018, Zhang et al. 2018.
    conv("densenet121-grow-28", 128, 28, 32, 3, padding=1),
    conv("densenet121-reduce-28", 256, 28, 128, 1),
    conv("densenet121-transition-14", 1024, 14, 512, 1),
    conv("squeezenet-stem", 3, 227, 96, 7, stride=2),
    conv("squeezenet-fire4-expand", 32, 27, 128, 3, padding=1),
    depthwise("xception-dw-19", 728, 19, 3),
    conv("xception-pw-19", 728, 19, 728, 1),
    conv("shufflenetv2-pw-28", 58, 28, 58, 1),
    depthwise("shufflenetv2-dw-28-s2", 116, 28, 3, stride=2),
    # Zagoruyko and Komodakis 2016; He et al. 2015 for CIFAR-10; small networks on batches of small images.
    conv("wideresnet-28-10-32", 160, 32, 160, 3, padding=1),
    conv("wideresnet-28-10-8-n8", 640, 8, 640, 3, n=8, padding=1),
    conv("resnet18-conv3-s2", 64, 56, 128, 3, stride=2, padding=1),
    conv("resnet18-conv5-s2", 256, 14, 512, 3, stride=2, padding=1),
    conv("resnet18-shortcut-14", 256, 14, 512, 1, stride=2),
    conv("resnet20-stem-n32", 3, 32, 16, 3, n=32, padding=1),
    conv("mnist-c1-n64", 1, 28, 32, 3, n=64),
    conv("mnist-c2-n64", 32, 26, 64, 3, n=64),
    conv("mnist-5x5-n64", 1, 28, 16, 5, n=64, padding=2),
    conv("mnist-c1", 1, 28, 32, 3),
    # Mnih et al. 2015, and with the batch that learns.
    conv("dqn-1-n32", 4, 84, 32, 8, n=32, stride=4),
    conv("dqn-2", 32, 20, 64, 4, stride=2),
    conv("dqn-2-n32", 32, 20, 64, 4, n=32, stride=2),
    conv("dqn-3", 64, 9, 64, 3),
    # Radford et al. 2015, Johnson et al. 2016, Isola et al. 2016, Karras et al. 2019: pictures from pictures.
    conv("dcgan-down-64", 3, 64, 64, 4, stride=2, padding=1),
    conv("dcgan-down-8", 256, 8, 512, 4, stride=2, padding=1),
    conv("style-in", 3, 256, 32, 9, padding=4),
    conv("style-down-256", 32, 256, 64, 3, stride=2, padding=1),
    conv("style-out", 32, 256, 3, 9, padding=4),
    conv("pix2pix-down-64", 128, 64, 256, 4, stride=2, padding=1),
    conv("stylegan-256", 64, 256, 64, 3, padding=1),
    conv("stylegan-rgb-256", 64, 256, 3, 1),
    # Ledig et al. 2016, Wang et al. 2018, Dong et al. 2016, Zhang et al. 2016.
    conv("srgan-body-96", 64, 96, 64, 3, padding=1),
    conv("esrgan-grow-64", 128, 64, 32, 3, padding=1),
    conv("fsrcnn-shrink", 56, 128, 12, 1),
    conv("fsrcnn-features", 1, 128, 56, 5, padding=2),
    conv("dncnn-180", 64, 180, 64, 3, padding=1),
    conv("dncnn-out-180", 64, 180, 1, 3, padding=1),
    # Dosovitskiy et al. 2020, Liu et al. 2021, Wang et al. 2021, Woo et al. 2023.
    conv("vit-patches-8", 3, 224, 384, 8, stride=8),
    conv("pvt-reduce-56", 64, 56, 64, 8, stride=8),
    conv("pvt-reduce-28", 128, 28, 128, 4, stride=4),
    depthwise("convnextv2-dw-56", 40, 56, 7),
    conv("convnextv2-expand-14", 160, 14, 640, 1),
    conv("convnextv2-down-28", 80, 28, 160, 2, stride=2),
    depthwise("convnext-b-dw-14-n8", 512, 14, 7, n=8),
    # Xie et al. 2016 with 64 groups, Radosavovic et al. 2020, Zhang et al. 2020.
    conv("resnext101-conv3-3x3", 512, 28, 512, 3, padding=1, groups=64),
    conv("regnety-8gf-s2", 224, 56, 224, 3, stride=2, padding=1, groups=4),
    conv("regnetx-400mf-s2", 160, 28, 160, 3, stride=2, padding=1, groups=10),
    conv("regnetx-400mf-14", 160, 14, 160, 3, padding=1, groups=10),
    conv("resnest-3x3-28", 128, 28, 256, 3, padding=1, groups=2),
    # Chen et al. 2018, Zhao et al. 2016, Paszke et al. 2016, Yu and Koltun 2015.
    conv("deeplab-aspp-18-65", 320, 65, 256, 3, padding=18, dilation=18),
    conv("deeplab-project-65", 1280, 65, 256, 1),
    conv("pspnet-out", 512, 60, 21, 1),
    conv("pspnet-block5", 512, 30, 512, 3, padding=4, dilation=4),
    conv("enet-5x1", 32, (64, 128), 32, (5, 1), padding=(2, 0)),
    conv("drn-dilated-2", 128, 56, 128, 3, padding=2, dilation=2),
    # Szegedy et al. 2015 and 2016.
    conv("inception4-1x7-17", 160, 17, 192, (1, 7), padding=(0, 3)),
    conv("inception4-3x1-8", 448, 8, 512, (3, 1), padding=(1, 0)),
    conv("inception3-5x5-35", 48, 35, 64, 5, padding=2),
    # Sounds as images: Pons et al. 2017, Zhang et al. 2017, Hershey et al. 2017.
    conv("musicnn-timbre", 1, (187, 96), 51, (7, 38)),
    conv("kws-first", 1, (49, 10), 64, (10, 4), stride=2, padding=(5, 1)),
    depthwise("kws-dw", 64, 25, 3),
    conv("vggish-conv2", 64, (48, 32), 128, 3, padding=1),
    # Long et al. 2022 onwards: large kernels; image processing.
    depthwise("segnext-dw-7", 64, 64, 7),
    depthwise("van-dw-7-dilated", 64, 56, 7, dilation=3),
    depthwise("unireplknet-dw-28", 192, 28, 13),
    conv("gauss-21", 1, 512, 1, 21, padding=10),
    conv("gabor-bank", 1, 256, 40, 15, padding=7),
    conv("sobel-2048", 1, 2048, 2, 3, padding=1),
)
