"""Export of a trained model for others."""


def export() -> None:
    """Later."""
