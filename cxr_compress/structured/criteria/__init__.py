"""The criteria themselves: what each makes of a filter; `importance.score_channels` is the way in."""
