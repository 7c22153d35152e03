"""The science of RASS: tensors and tables in, values and tables out. Knows no Prefect."""

__version__ = "0.1.0"
