# The digit scenes of suites/digit_scenes.yaml: all ten digits, 2,000 training and 500 test scenes.
digit_scenes, scenes_root = dict(train=2000, val=500, values=tuple(range(10))), 'data/digit_scenes_2000'
