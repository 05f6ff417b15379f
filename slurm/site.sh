# What differs from one cluster to the next, in one place. The scripts of this folder source it on the first node of a
# job, in the folder that the job was submitted from; its exports reach every task. Edit what does not fit.
# shellcheck shell=bash disable=SC2034

# 1. Software: modules, and the environment that has m3ae-scale.
# module load cuda/13.0
# shellcheck source=/dev/null
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

# A job that was killed while it compiled an operation leaves a lock, for which all later ones would wait for ever.
find "${TORCH_EXTENSIONS_DIR:-$HOME/.cache/torch_extensions}" -name lock -mmin +10 -delete 2>/dev/null

# 2. Container, where the tasks run in one: words put before each command (Apptainer), or options for srun (pyxis).
CONTAINER=()
# CONTAINER=(apptainer exec --nv --bind /scratch m3ae_scale.sif)
SRUN_OPTIONS=()
# SRUN_OPTIONS=(--container-image="$PWD/m3ae_scale.sqsh" --container-mounts="$PWD:$PWD,/scratch" --container-workdir="$PWD")
# SRUN_OPTIONS+=(--cpu-bind=cores)

# 3. Network: where the first node is reached by the others, and by which interface. Slurm's own address of the node
# is right on most clusters; name an interface where machines have several.
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" -o | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export MASTER_ADDR
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# 4. Starts in a row that bring no newer checkpoint before a job gives up.
STARTS_IN_VAIN=3
