"""Many launches as one experiment: stages that are shared, arms that are compared, trials under Ray Tune."""
