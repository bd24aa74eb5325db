"""What a file says about itself: standard metadata, a model card, and the package that ships."""
