"""What makes a fine-tuned model faster on this machine, without training: tried, measured, chosen.

``candidates`` says what can be tried, ``worker`` loads and runs one candidate in a process of its
own, ``bench`` measures candidates beside the model as it is and keeps what it measured, ``search``
combines them under a budget of errors, ``outcome`` writes the model that was chosen, ``training``
names what fine-tuning would add.
"""
