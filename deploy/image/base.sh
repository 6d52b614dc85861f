#!/bin/sh
# Builds a substitute for the base image python:3.13-slim on machines without access to a registry, from debootstrap's
# Debian and a CPython 3.13 in a folder of its own, as pyenv or `make install` create it. Only for trying the Dockerfile,
# as root:
#   deploy/image/base.sh "$(python3.13 -c 'import sys; print(sys.base_prefix)')"
#   make image BUILDER=buildah ARGS='--network host'
# Needs buildah and debootstrap. SUITE and MIRROR select another Debian.
set -eu

python=$1
folder=$(mktemp -d)
root=$folder/root
trap 'rm -rf "$folder"' EXIT

debootstrap --variant=minbase --include=ca-certificates,netbase,tzdata,libssl3t64,libffi8,libbz2-1.0,liblzma5,libsqlite3-0 \
  "${SUITE:-trixie}" "$root" ${MIRROR:+"$MIRROR"}
# Like the real base image: in /usr/local, with pip, without tests, packages, static libraries and bytecode.
mkdir -p "$root/usr/local/bin" "$root/usr/local/lib"
cp -a "$python"/bin/python3* "$root/usr/local/bin/"
cp -a "$python"/lib/python3.13 "$python"/lib/libpython3* "$root/usr/local/lib/"
find "$root/usr/local/lib" -depth \
  \( -type d \( -name test -o -name tests -o -name idle_test -o -name 'config-3*' -o -name __pycache__ \) -o -name '*.a' \) \
  -exec rm -rf {} +
rm -rf "$root"/usr/local/lib/python3.13/site-packages/* "$root"/usr/local/bin/*-config "$root"/usr/local/bin/*-gdb.py
ln -sf python3.13 "$root/usr/local/bin/python3"
ln -sf python3 "$root/usr/local/bin/python"
chroot "$root" /sbin/ldconfig
chroot "$root" /usr/local/bin/python -B -m ensurepip
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/usr/share/doc/* "$root"/usr/share/man/*

container=$(buildah from scratch)
buildah add --quiet "$container" "$root" /
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
buildah commit --quiet --rm "$container" docker.io/library/python:3.13-slim
