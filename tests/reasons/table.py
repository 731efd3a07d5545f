"""Reasons whose counterexample is another test, and those of which there can be none."""

from __future__ import annotations

UP = "tests/algebra/test_refusals.py::test_what_is_refused_upwards_would_be_wrong"
DOWN = "tests/algebra/test_passing.py::test_what_is_refused_downwards_really_cannot_pass"
HERE = "tests/reasons/test_reasons.py::"
KERNELS = "tests/algebra/test_kernels.py::"

#: reason -> the test that shows that doing it all the same would be wrong
ELSEWHERE = {
    "it leaves nothing of what it is given, as large as that is": (
        "tests/test_fold_unseen.py::test_only_a_reader_that_shows_keeps_a_norm"
    ),
    "{} is a {}, of whose numbers nothing is known": (
        "tests/test_fold_numbers.py::test_tensors_that_say_themselves_how_they_are_computed_with_stay"
    ),
    "its mask may hide a whole row, which then is zero and would need the shift too": UP,
    "a shift cannot pass a product with another value": UP,
    "a map cannot pass the softmax of an attention": DOWN,
    "a shift cannot pass a quotient": UP,
    "a shift cannot pass an activation": UP,
    "a negative scale cannot pass an activation": UP,
    "a negative scale turns a maximum into a minimum": UP,
    "its padding counts in the average and would need the shift too": UP,
    "its padding would need the map too": UP,
    "its {} has NaN or infinite values: repair the checkpoint": HERE + "test_a_damaged_norm_has_no_map",
    "running variance + eps is {} in a channel: recalibrate it": HERE + "test_a_damaged_norm_has_no_map",
    "its running variance is {} in a channel: recalibrate it": HERE + "test_a_damaged_norm_has_no_map",
    "it has no running statistics, so it normalises with those of each batch": HERE
    + "test_without_running_statistics_a_norm_is_no_fixed_map",
    "it normalises every sample with the sample's own statistics": HERE
    + "test_an_instance_norm_without_running_statistics_is_no_fixed_map",
    "it has no bias to take the shift, and modules alone cannot give it one: use form='graph'": HERE
    + "test_leaving_the_shift_out_would_be_wrong",
    "the map has fewer dimensions than its value": HERE + "test_without_sizes_a_shift_may_not_fit",
    "sizes that do not fit meet on the way: give sizes that the model takes": (
        "tests/test_fold_arguments.py::test_norms_that_do_not_fit_what_they_are_given_are_no_crash"
    ),
    "the map's channels are not its channels": HERE + "test_without_sizes_a_scale_may_not_fit",
    "{} would have to change and to stay as it is": HERE + "test_a_parameter_cannot_change_and_stay",
    "its scale and its shift would have to pass another call of it": "tests/test_fold_sharing.py::"
    "test_scale_and_shift_apart_do_not_pass_another_call_of_the_norm",
    "a scale of zero": HERE + "test_a_scale_of_zero_hides_every_shift_before_it",
    "which way the forward goes depends on this value": "tests/test_fold_calls.py::"
    "test_a_decision_that_reads_the_value_keeps_it",
    "it has one statistic per element (spatial = 0), not per channel": "tests/graphs/test_onnx_fold.py::"
    "test_statistics_per_element_stay_with_a_reason",
    "{} would leave the range of {}": "tests/test_fold_numbers.py::test_out_of_range_keeps_the_norm",
    "the new bias beside {} would leave its dtype's range": "tests/test_blame.py::"
    "test_of_two_norms_only_the_one_that_overflows_stays",
    "the second layer's zero padding would need the first one's bias": KERNELS
    + "test_a_chain_that_padding_makes_inexact_is_refused_and_rightly",
    "the second layer's padding cuts the first one's border": KERNELS
    + "test_a_chain_that_padding_makes_inexact_is_refused_and_rightly",
    "they pad with different values": KERNELS
    + "test_branches_that_pad_with_different_values_are_refused_and_rightly",
    "one value per sample: the norm erases the data": HERE + "test_a_norm_over_one_value_erases_the_data",
    "one channel: a norm over channels erases the data": HERE + "test_a_norm_over_one_value_erases_the_data",
    "one channel: only its sign would be left": HERE + "test_a_norm_over_one_value_erases_the_data",
    "one value per channel and sample: an instance norm erases the data": HERE
    + "test_a_norm_over_one_value_erases_the_data",
    "{} groups of {} channels are one value each: the norm erases the data": HERE
    + "test_a_norm_over_one_value_erases_the_data",
}

NO_LOOK = "what is not seen cannot be proven, and an example proves nothing of it"
MERGING = "a merge that is not made costs speed, no norm: these would be larger or slower kernels"
NO_SUM = "the sizes differ, so there is nothing to add or to compose"

#: reason -> why folding all the same cannot be shown to be wrong
NONE_POSSIBLE = {
    "kept as asked": "the user's choice",
    "its map would have to travel too far": "a limit on effort, not on what is exact",
    "not into what feeds it ({}); not into what it feeds ({})": "made of two reasons",
    "{}: {}": "another reason, with its place",
    "its sizes are not known: give example inputs": NO_LOOK,
    "its sizes are not known: only running the model would tell": NO_LOOK,
    "its sizes are not known: no call of it is reached with the example inputs": NO_LOOK,
    "its sizes are not known: the code around it calls it with inputs of several sizes": NO_LOOK,
    "its sizes are not known: the model raises {}": NO_LOOK,
    "what it moves where cannot be followed ({})": NO_LOOK,
    "it moves too many values to follow": "a limit on effort, not on what is exact",
    "where it moves values is not known: {}": NO_LOOK,
    "code that cannot be traced calls it": NO_LOOK,
    "its {} {}": "an input that a caller or the graph gives anew has no fixed map to fold",
    "the graph reads the statistics it computes": "without the norm they would not be there",
    "the model never calls it": "there is nothing to fold",
    "it is all there is: nothing feeds it, and it feeds nothing": "there is nothing to fold it into",
    "torch.compile has taken the model: fold the one it was made of, then compile": "a matter of order",
    "it is a function call, which modules alone cannot take out: use form='graph'": "graph form folds it",
    "a MatMul with this operand constant has no place for a shift": "an Add in its place would be no gain",
    "{} has NaN or infinite values": "whatever is done with them, the outputs are no numbers",
    "it has several channels, and a single dimension is one": "runtimes refuse such a model",
    "it divides by zero": "the network itself gives infinities there",
    "its padding is no multiple of its dilation away from the other's": MERGING,
    "the branches' kernels have different centres": MERGING,
    "the layers' strides and dilations differ": MERGING,
    "the first layer's stride skips what the second one reads": MERGING,
    "the branches differ in channels": NO_SUM,
    "the branches have different strides": NO_SUM,
    "the layers do not fit one another": NO_SUM,
    "no batch norm takes {} dimensions": "torch has none",
    "{} channels do not divide into {} groups": "torch raises for such a norm",
    "one value per channel at batch size {}: say the batch size you train with": "torch raises in training",
}
