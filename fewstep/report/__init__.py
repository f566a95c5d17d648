"""What a job leaves behind for its reader: one self-contained HTML page, picture grids, JSON files."""
