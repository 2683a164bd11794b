"""`molora evaluate`: every mode on labelled cases, asked of live services as a client would."""
