"""The source of labelled texts: tables, Parquet files, and folders of either or of text files."""
