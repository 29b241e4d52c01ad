"""Named image sets and other published data, read as their authors laid them out."""

from autobalance_bench.datasets.celeba import load_celeba
from autobalance_bench.datasets.cifar import CIFAR, load_cifar, load_cifar_lt
from autobalance_bench.datasets.downloads import Published, fetch, fetch_folder
from autobalance_bench.datasets.embeddings import read_embeddings
from autobalance_bench.datasets.fashion import load_fashion_mnist
from autobalance_bench.datasets.hugging_face import read_hugging_face, read_hugging_face_vectors
from autobalance_bench.datasets.imagenet_lt import load_imagenet_lt
from autobalance_bench.datasets.images import ImageFiles, ImageSplits, LabelledImages
from autobalance_bench.datasets.inaturalist import load_inaturalist_2018
from autobalance_bench.datasets.longtail import (
    Profile,
    exponential_counts,
    long_tailed,
    pareto_counts,
    profile_of,
    sample_by_class,
    step_counts,
)
from autobalance_bench.datasets.own_images import read_class_folders, read_image_table
from autobalance_bench.datasets.textures import OBJECTS, TEXTURES, build_fashion_textures
from autobalance_bench.datasets.waterbirds import load_waterbirds

__all__ = [
    "CIFAR",
    "OBJECTS",
    "TEXTURES",
    "ImageFiles",
    "ImageSplits",
    "LabelledImages",
    "Profile",
    "Published",
    "build_fashion_textures",
    "exponential_counts",
    "fetch",
    "fetch_folder",
    "load_celeba",
    "load_cifar",
    "load_cifar_lt",
    "load_fashion_mnist",
    "load_imagenet_lt",
    "load_inaturalist_2018",
    "load_waterbirds",
    "long_tailed",
    "pareto_counts",
    "profile_of",
    "read_class_folders",
    "read_embeddings",
    "read_hugging_face",
    "read_hugging_face_vectors",
    "read_image_table",
    "sample_by_class",
    "step_counts",
]
