"""What each command does, between the command line and the rooms below.

    training     train: open, prepare, plan, train, verify, report
    measure      eval
    answer       generate
    inspection   inspect: what a file holds;  adapter_norms: how large its pairs are
    rendering    render
    doctor       doctor: what may be in the way on this machine

Nothing is imported here, so that commands without torch start at once.
"""
