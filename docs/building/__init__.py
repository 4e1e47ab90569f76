"""Extensions of Sphinx that these pages need: equations, the reference and the pictures."""
