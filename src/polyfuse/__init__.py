"""polyfuse: multimodal models that keep working, and know how sure they are, when inputs go missing."""

__version__ = "0.1.0"
