"""Fashion-MNIST's class names and image size, importable without PyTorch."""

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Class names in class order. Source: Xiao, Rasul, Vollgraf: Fashion-MNIST (arXiv:1708.07747), table 2."""

IMAGE_SIZE = 28
"""Height and width of the model's input, in pixels."""
