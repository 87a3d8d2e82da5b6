"""What must not break it: kills, a full disk, many visitors, hostile files and words, no memory, two apps."""
