"""What every consuming tool can do to messages before its output gets them. Pure, but for `--transform`.

The steps, always in this order, each on what the ones before it have left:

    sample              by the message's id
    grep, grep-exclude  by its bytes
    non-json, require-json-field, require-json-value, whitelist-json-field
    transform           a function of the user

Rules. (1) A step removes messages, changes bodies, or refuses; id and time stay. (2) What nothing
changes goes on byte for byte, and where no step is asked for nothing is looked at. (3) Equal messages
fare equally, at each try and in each run; that `--transform` does so, too, is its author's affair.
"""
