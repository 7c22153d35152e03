"""Publishing a data set: releases, formats of training tools, cards."""
