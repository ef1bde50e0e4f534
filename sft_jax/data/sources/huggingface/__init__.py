"""Image sets in the forms of Hugging Face: folders with metadata files, Parquet files, repositories of the hub."""
