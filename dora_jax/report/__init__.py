"""One page that shows what runs came to: figures, tables and a budget to move, in one file."""
