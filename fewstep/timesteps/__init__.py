"""Rules that place the times of a sampling grid."""
