"""What `altgrad formats` says: facts and codes of a format, how well formats keep typical data, and tables of both."""
