"""What a sweep will do, described and never executed: trials, programs, costs, forecasts."""
