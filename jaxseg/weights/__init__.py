"""Other people's weights: a file for each foreign layout, `table` to bring arrays over and back, `files` to read what is stored."""
