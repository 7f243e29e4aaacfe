# The two commands of the README are `make demo` and `make test`; the rest is listed by `make help`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := --base-model-path tiny-cubes --dataset-path data_samples/cube_to_bowl --embodiment-tag NEW_EMBODIMENT --modality-config-path data_samples/cube_to_bowl_config.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY := PASSIVE  # threads that wait sleep instead of spinning: loader and trainer share the cores

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP) ## .venv with everything, FFmpeg's libraries; costs nothing the second time
	@ldconfig -p 2>/dev/null | grep -q 'libavcodec\.so\.\(58\|59\|60\|61\|62\)' || \
	 if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   echo "FFmpeg's libraries are missing: installing them with apt-get."; \
	   apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; \
	 else echo "error: FFmpeg's libraries (4 to 8) are missing, and without them no video can be read. Run: sudo apt-get install -y ffmpeg" >&2; exit 1; fi

	@ldconfig -p 2>/dev/null | grep -q 'libEGL\.so' || \
	 if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   echo "EGL is missing: installing it with apt-get, for the simulator's pictures."; \
	   apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libegl1 libgl1-mesa-dri >/dev/null; \
	 else echo "note: without EGL the simulator draws no pictures. To see it: sudo apt-get install -y libegl1 libgl1-mesa-dri"; fi

$(STAMP): constraints.txt settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt torch torchcodec
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev_install_hooks >/dev/null; fi
	@touch $@

export: $(STAMP) ## notebooks -> package, script, README
	$(BIN)/python export.py

demo: setup ## fine-tune a small GR00T N1.6 on the sample, see it predict and act, on a CPU
	$(BIN)/python scripts/finetune.py $(DEMO) --tune-llm --tune-visual --val-fraction 0.1 --global-batch-size 32 --max-steps 200 --learning-rate 1e-4 \
	    --dataloader-num-workers 0 --frame-cache --save-steps 100 --logging-steps 10 --output-dir outputs/demo
	$(BIN)/python -m gr00t_nb.evaluation.open_loop --model-path outputs/demo --dataset-path data_samples/cube_to_bowl --embodiment-tag NEW_EMBODIMENT --require-better
	$(BIN)/python -m gr00t_nb.rollout.evaluate --model-path outputs/demo --episodes 30 --processes 2

lab: setup ## JupyterLab on the first notebook
	$(BIN)/jupyter lab --ip 127.0.0.1 nbs/index.ipynb

notebooks: setup ## execute every notebook in place, clean it, and export: as they are committed
	for n in $$(find nbs -name '*.ipynb' -not -path '*/.*' | sort); do \
	  $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace --ExecutePreprocessor.kernel_name=python3 $$n || exit 1; done
	$(BIN)/nbdev_clean
	$(BIN)/python export.py

docs: setup ## the notebooks as a site in _docs/, to be read without a network
	rm -rf _docs
	$(BIN)/sphinx-build -q -W --keep-going -j auto -c docs nbs _docs
	@echo "Open _docs/index.html in a browser."

browser: # Chromium for tests/test_browser.py, which is skipped where there is none; the demo needs no browser
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	 if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   echo "Chromium is missing: installing it with apt-get, for the browser test."; \
	   { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || echo "note: Chromium could not be installed."; \
	 else echo "note: without Chromium the browser test is skipped. To run it: sudo apt-get install -y chromium"; fi

ROS := python3-rospy python3-rosmaster python3-roslaunch python3-sensor-msgs python3-std-msgs python3-geometry-msgs
ros: # ROS 1 for tests/test_ros.py, which is skipped where there is none; `make test` does not ask for it
	@command -v rosmaster >/dev/null || \
	 if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   echo "ROS is missing: installing it with apt-get, for the test of robots."; \
	   { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(ROS) >/dev/null; } || echo "note: ROS could not be installed."; \
	 else echo "note: without ROS its test is skipped. To run it: sudo apt-get install -y --no-install-recommends $(ROS)"; fi

test: setup browser ## every notebook, in a drawn order; tests of the package, its rules, and what is generated
	OMP_NUM_THREADS=1 $(BIN)/python tests/notebooks.py
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

clean: ## what can be made again: .venv, outputs, caches in the checkout
	rm -rf .venv outputs _docs _proc build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup export demo lab notebooks docs browser ros test clean
.DEFAULT_GOAL := help
