"""Scale: one job on many machines: sampling in shards, experts trained apart, patches of one picture in parallel."""
