#!/bin/sh
# A leg of a training, on a machine that is there for minutes:
#   scripts/leg.sh RECIPE STATE MINUTES [OPTION ...]
# It goes on from the state files in the folder STATE, if there are any, and leaves there those that the next leg goes on
# from, here or elsewhere: each below 16 MiB, optimizers and averages in bfloat16. Options are those of `hyperbagel fit`;
# a GPU wants large batches and many readers, as in the recipe gpu-drawing, or:
#   scripts/leg.sh scenes/joint state 8 --data.init_args.batching.times 16 --data.init_args.reader.num_workers 16
# HYPERBAGEL is the command that it runs (hyperbagel).
set -eu
recipe=$1 state=$2 minutes=$3
shift 3
hyperbagel=${HYPERBAGEL:-hyperbagel}
last=$state.run/leg/checkpoints/last.ckpt
[ ! -f "$state/state.json" ] || $hyperbagel checkpoint join "$state" "$last"
$hyperbagel fit --config "$recipe" --trainer.max_time "00:00:$(printf %02d "$minutes"):00" --callbacks.checkpoint.save_last true \
	--trainer.logger lightning.pytorch.loggers.TensorBoardLogger --trainer.logger.init_args.save_dir "$state.run" \
	--trainer.logger.init_args.name leg --trainer.logger.init_args.version "" --ckpt_path last "$@"
$hyperbagel checkpoint split "$last" "$state" --others bfloat16
