"""What is trained: the built-in image classification task and one's own."""
