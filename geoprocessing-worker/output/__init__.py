"""Write a picture as files, and check them."""
