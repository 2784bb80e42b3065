//! The image of a Kubernetes node for kind, where it cannot be pulled: a Debian with systemd, containerd and the built
//! Kubernetes, which carries the images of the control plane inside.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::build::go::{COREDNS, ETCD, KUBERNETES, KUBERNETES_VERSION, PAUSE, Program};
use crate::build::{closure, debian, scrap, workshop};
use crate::cache::{self, Layout, key_of};
use crate::engine::Engine;
use crate::engine::images::Settings;
use crate::progress::{Progress, Step};
use crate::shell;

/// What a node is called in the engine.
pub const TAG: &str = "kvcluster/kind-node:v1.34.4";

const PACKAGES: [&str; 19] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "nftables",
    "iproute2",
    "ethtool",
    "socat",
    "conntrack",
    "kmod",
    "mount",
    "procps",
    "util-linux",
    "jq",
    "curl",
    "ca-certificates",
];

/// Files of the recipe: where each goes, and what it holds.
const FILES: [(&str, u32, &str); 7] = [
    (
        "usr/local/bin/entrypoint",
        0o755,
        include_str!("../../recipes/node/entrypoint"),
    ),
    (
        "etc/containerd/config.toml",
        0o644,
        include_str!("../../recipes/node/containerd.toml"),
    ),
    (
        "etc/systemd/system/kubelet.service",
        0o644,
        include_str!("../../recipes/node/kubelet.service"),
    ),
    (
        "etc/systemd/system/load-images.service",
        0o644,
        include_str!("../../recipes/node/load-images.service"),
    ),
    (
        "etc/systemd/system/containerd.service.d/lab.conf",
        0o644,
        include_str!("../../recipes/node/containerd-service.conf"),
    ),
    (
        "kind/manifests/default-storage.yaml",
        0o644,
        include_str!("../../recipes/node/storage.yaml"),
    ),
    ("kind/version", 0o644, KUBERNETES_VERSION),
];

const UNITS: [&str; 3] = [
    "containerd.service",
    "load-images.service",
    "kubelet.service",
];

/// Units that make no sense in a container, or wait for what never comes.
const MASKED: [&str; 6] = [
    "systemd-udevd.service",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-resolved.service",
    "getty.target",
    "systemd-logind.service",
];

/// Whether the image is there.
pub fn is_made(engine: &Engine) -> bool {
    engine.has_built(TAG, &key())
}

/// Builds the image if it is not there.
pub fn ensure(layout: &Layout, progress: &Progress, engine: &Engine) -> Result<()> {
    if is_made(engine) {
        return Ok(());
    }
    let base = debian::base(layout, progress)?;
    let programs = Programs::build(layout, progress)?;
    progress.step("make the node image", |step| {
        let folder = workshop(layout, "node")?;
        let root = folder.join("root");
        debian::with_packages(layout, step, &base, &root, &PACKAGES)?;
        install(&root, &programs)?;
        component_images(layout, step, engine, &root, &programs, &folder)?;
        step.detail("import");
        let entrypoint = ["/usr/local/bin/entrypoint", "/sbin/init"];
        let settings = Settings {
            entrypoint: &entrypoint,
            environment: &["container=docker"],
            ..Settings::default()
        };
        engine.import(&root, TAG, &key(), &settings)?;
        scrap(layout, "node")
    })
}

fn key() -> String {
    let programs = [&KUBERNETES, &ETCD, &COREDNS, &PAUSE].map(Program::key);
    let mut inputs: Vec<&str> = programs.iter().map(String::as_str).collect();
    inputs.extend(PACKAGES.iter().chain(&UNITS).chain(&MASKED));
    inputs.extend(FILES.iter().map(|(_, _, text)| text));
    key_of(&inputs)
}

struct Programs {
    kubernetes: PathBuf,
    etcd: PathBuf,
    coredns: PathBuf,
    pause: PathBuf,
}

impl Programs {
    fn build(layout: &Layout, progress: &Progress) -> Result<Self> {
        Ok(Self {
            kubernetes: KUBERNETES.built(layout, progress)?,
            etcd: ETCD.built(layout, progress)?,
            coredns: COREDNS.built(layout, progress)?,
            pause: PAUSE.built(layout, progress)?,
        })
    }
}

fn install(root: &Path, programs: &Programs) -> Result<()> {
    for (path, mode, text) in FILES {
        let path = root.join(path);
        cache::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let wanted = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    for unit in UNITS {
        let link = wanted.join(unit);
        if fs::symlink_metadata(&link).is_err() {
            let folder = if unit == "containerd.service" {
                "/lib"
            } else {
                "/etc"
            };
            symlink(format!("{folder}/systemd/system/{unit}"), link)?;
        }
    }
    for unit in MASKED {
        let link = root.join("etc/systemd/system").join(unit);
        if fs::symlink_metadata(&link).is_err() {
            symlink("/dev/null", link)?;
        }
    }
    let default_target = root.join("etc/systemd/system/default.target");
    if fs::symlink_metadata(&default_target).is_err() {
        symlink("/lib/systemd/system/multi-user.target", default_target)?;
    }
    fs::copy(&programs.kubernetes, root.join("usr/bin/kubelet"))?;
    for name in ["kubeadm", "kubectl"] {
        symlink("kubelet", root.join("usr/bin").join(name))?;
    }
    Ok(())
}

/// Makes the images that kubeadm asks for and puts them into the node as one archive.
fn component_images(
    layout: &Layout,
    step: &Step,
    engine: &Engine,
    root: &Path,
    programs: &Programs,
    folder: &Path,
) -> Result<()> {
    step.detail("images of the control plane");
    let names = image_names(layout, &programs.kubernetes)?;
    let kubernetes = folder.join("kubernetes");
    closure::skeleton(&kubernetes)?;
    closure::copy(root, &filter_programs(root)?, &kubernetes)?;
    for name in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            symlink(
                "xtables-nft-multi",
                kubernetes.join("usr/sbin").join(format!("{name}{suffix}")),
            )?;
        }
    }
    fs::copy(
        &programs.kubernetes,
        kubernetes.join("usr/local-kubernetes"),
    )?;
    for name in [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kube-proxy",
    ] {
        fs::create_dir_all(kubernetes.join("usr/local/bin"))?;
        symlink(
            "../../local-kubernetes",
            kubernetes.join("usr/local/bin").join(name),
        )?;
    }
    let path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let settings = Settings {
        environment: &[path],
        ..Settings::default()
    };
    let mut tags = Vec::new();
    for name in &names {
        tags.push(name.as_str());
        let (program, entrypoint) = match component(name) {
            Some(Component::Kubernetes) => {
                match tags
                    .iter()
                    .find(|tag| component(tag) == Some(Component::Kubernetes))
                {
                    Some(first) if first != name => engine.tag(first, name)?,
                    _ => engine.import(&kubernetes, name, "component", &settings)?,
                }
                continue;
            }
            Some(Component::Etcd) => (&programs.etcd, None),
            Some(Component::Coredns) => (&programs.coredns, Some("/coredns")),
            Some(Component::Pause) => (&programs.pause, Some("/pause")),
            None => bail!("kubeadm asks for an image that the lab cannot build: {name}"),
        };
        let one = folder.join("component");
        cache::remove(&one)?;
        closure::skeleton(&one)?;
        let file = program.file_name().context("a program has a name")?;
        let place = if entrypoint.is_some() {
            one.clone()
        } else {
            one.join("usr/bin")
        };
        fs::copy(program, place.join(file))?;
        let entrypoint: Vec<&str> = entrypoint.into_iter().collect();
        let settings = Settings {
            entrypoint: &entrypoint,
            environment: &[path],
            ..Settings::default()
        };
        engine.import(&one, name, "component", &settings)?;
    }
    step.detail("archive of the control plane's images");
    engine.save(&tags, &root.join("kind/images.tar"))?;
    tags.iter()
        .try_for_each(|tag| shell::output(&mut engine.docker(&["rmi", tag])).map(drop))
}

#[derive(Debug, PartialEq, Eq)]
enum Component {
    Kubernetes,
    Etcd,
    Coredns,
    Pause,
}

fn component(image: &str) -> Option<Component> {
    let name = image.rsplit('/').next()?.split(':').next()?;
    match name {
        "etcd" => Some(Component::Etcd),
        "coredns" => Some(Component::Coredns),
        "pause" => Some(Component::Pause),
        _ => name.starts_with("kube-").then_some(Component::Kubernetes),
    }
}

/// kubeadm knows the names and versions of the images that it will ask for.
fn image_names(layout: &Layout, kubernetes: &Path) -> Result<Vec<String>> {
    let kubeadm = layout.root().join("workshop/kubeadm");
    // It may be there from a try that broke off.
    let _ = fs::remove_file(&kubeadm);
    symlink(kubernetes, &kubeadm)?;
    let words = [
        "config",
        "images",
        "list",
        "--kubernetes-version",
        KUBERNETES_VERSION,
    ];
    let text = shell::output(std::process::Command::new(&kubeadm).args(words))?;
    fs::remove_file(&kubeadm)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What kube-proxy runs: the packet filter's programs with all their modules, and conntrack.
fn filter_programs(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![
        PathBuf::from("/usr/sbin/xtables-nft-multi"),
        "/usr/sbin/conntrack".into(),
    ];
    let libraries = fs::read_dir(root.join("usr/lib"))?
        .flatten()
        .map(|entry| entry.path());
    for folder in libraries
        .map(|folder| folder.join("xtables"))
        .filter(|folder| folder.is_dir())
    {
        let inside = Path::new("/").join(folder.strip_prefix(root)?);
        files.extend(
            fs::read_dir(&folder)?
                .flatten()
                .map(|entry| inside.join(entry.file_name())),
        );
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_of_kubeadm_has_its_program() {
        assert_eq!(
            component("registry.k8s.io/kube-proxy:v1.34.4"),
            Some(Component::Kubernetes)
        );
        assert_eq!(
            component("registry.k8s.io/coredns/coredns:v1.12.1"),
            Some(Component::Coredns)
        );
        assert_eq!(
            component("registry.k8s.io/etcd:3.6.5-0"),
            Some(Component::Etcd)
        );
        assert_eq!(
            component("registry.k8s.io/pause:3.10.1"),
            Some(Component::Pause)
        );
        assert_eq!(component("registry.k8s.io/new:1"), None);
    }

    #[test]
    fn the_tag_names_the_version() {
        assert!(TAG.ends_with(KUBERNETES_VERSION));
        assert_eq!(key(), key());
    }
}
