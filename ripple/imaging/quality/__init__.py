"""Quality control: what is measured on a row, which flags follow, whether it is accepted."""
