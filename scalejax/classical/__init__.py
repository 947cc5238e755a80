"""Classical baselines of scikit-learn, fitted on host cores beside the engine, trials of the same sweep."""
