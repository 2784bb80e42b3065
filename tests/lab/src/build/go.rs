//! Go programs that exist only as modules: each from a committed `go.mod` and `go.sum`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Layout, key_of, write};
use crate::machine::tools::{Tool, require};
use crate::progress::Progress;
use crate::shell;

/// The version of Kubernetes that the lab builds.
pub const KUBERNETES_VERSION: &str = "v1.34.4";

/// A Go program and its recipe.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    version: &'static str,
    package: &'static str,
    module: &'static str,
    sums: &'static str,
    main: Option<&'static str>,
}

/// Every Kubernetes component in one binary that goes by its own name.
pub const KUBERNETES: Program = Program {
    name: "kubernetes",
    version: KUBERNETES_VERSION,
    package: ".",
    module: include_str!("../../recipes/go/kubernetes/go.mod"),
    sums: include_str!("../../recipes/go/kubernetes/go.sum"),
    main: Some(include_str!("../../recipes/go/kubernetes/main.go")),
};

/// The cluster's own store.
pub const ETCD: Program = Program {
    name: "etcd",
    version: "v3.6.5",
    package: "go.etcd.io/etcd/server/v3",
    module: include_str!("../../recipes/go/etcd/go.mod"),
    sums: include_str!("../../recipes/go/etcd/go.sum"),
    main: None,
};

/// Names inside the cluster.
pub const COREDNS: Program = Program {
    name: "coredns",
    version: "v1.12.1",
    package: ".",
    module: include_str!("../../recipes/go/coredns/go.mod"),
    sums: include_str!("../../recipes/go/coredns/go.sum"),
    main: Some(include_str!("../../recipes/go/coredns/main.go")),
};

/// The process that holds a pod's namespaces.
pub const PAUSE: Program = Program {
    name: "pause",
    version: "3.10.1",
    package: ".",
    module: include_str!("../../recipes/go/pause/go.mod"),
    sums: "",
    main: Some(include_str!("../../recipes/go/pause/main.go")),
};

/// Clusters in containers.
pub const KIND: Program = Program {
    name: "kind",
    version: "v0.30.0",
    package: "sigs.k8s.io/kind",
    module: include_str!("../../recipes/go/kind/go.mod"),
    sums: include_str!("../../recipes/go/kind/go.sum"),
    main: None,
};

/// Installs charts.
pub const HELM: Program = Program {
    name: "helm",
    version: "v3.19.5",
    package: "helm.sh/helm/v3/cmd/helm",
    module: include_str!("../../recipes/go/helm/go.mod"),
    sums: include_str!("../../recipes/go/helm/go.sum"),
    main: None,
};

impl Program {
    /// What changes when the program does.
    pub fn key(&self) -> String {
        let main = self.main.unwrap_or_default();
        let flags = self.linker_flags();
        let hash = key_of(&[self.package, self.module, self.sums, main, &flags]);
        format!("{}-{hash}", self.version)
    }

    /// Whether it is there already.
    pub fn is_built(&self, layout: &Layout) -> bool {
        layout.artifact(self.name, &self.key()).is_dir()
    }

    /// The program's file; builds it if it is not there.
    pub fn built(&self, layout: &Layout, progress: &Progress) -> Result<PathBuf> {
        let key = self.key();
        let done = layout.artifact(self.name, &key);
        if !done.is_dir() {
            require(&[Tool::Go])?;
            let title = format!("build {} {}", self.name, self.version);
            progress.step(&title, |_| {
                layout.artifact_or(self.name, &key, |folder| self.build(layout, folder))
            })?;
        }
        Ok(done.join(self.name))
    }

    fn build(&self, layout: &Layout, folder: &Path) -> Result<()> {
        let source = folder.join("source");
        write(&source.join("go.mod"), self.module)?;
        write(&source.join("go.sum"), self.sums)?;
        if let Some(main) = self.main {
            write(&source.join("main.go"), main)?;
        }
        let target = folder.join(self.name).display().to_string();
        let flags = self.linker_flags();
        // Niced: a build of minutes should leave the machine usable.
        let words = [
            "nice",
            "go",
            "build",
            "-trimpath",
            "-ldflags",
            &flags,
            "-o",
            &target,
            self.package,
        ];
        let mut command = shell::command(&words);
        command.current_dir(&source);
        command
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-buildvcs=false -mod=readonly");
        shell::run_logged(&mut command, &layout.log(self.name))
            .with_context(|| format!("cannot build {} {}", self.name, self.version))
    }

    /// Kubernetes must know its version: kubeadm compares the components' with its own.
    fn linker_flags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        if self.name != "kubernetes" {
            return flags;
        }
        let minor = self.version.split('.').nth(1).unwrap_or_default();
        let values = [
            ("gitVersion", self.version),
            ("gitMajor", "1"),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
            ("gitCommit", "0000000000000000000000000000000000000000"),
        ];
        for package in [
            "k8s.io/component-base/version",
            "k8s.io/client-go/pkg/version",
        ] {
            for (name, value) in values {
                flags.extend([" -X ", package, ".", name, "=", value]);
            }
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_requires_the_version_it_is_named_after() {
        for program in [&KUBERNETES, &ETCD, &COREDNS, &KIND, &HELM] {
            let required = program.module.lines().any(|line| {
                let mut words = line.trim_start_matches("require").split_whitespace();
                let is_module = words.next().is_some_and(|module| {
                    module.ends_with(program.name) || program.package.starts_with(module)
                });
                is_module && words.next() == Some(program.version)
            });
            assert!(required, "{} {}", program.name, program.version);
        }
    }

    #[test]
    fn only_kubernetes_carries_its_version() {
        assert!(
            KUBERNETES
                .linker_flags()
                .contains("k8s.io/client-go/pkg/version.gitMinor=34")
        );
        assert_eq!(KIND.linker_flags(), "-s -w");
        assert_ne!(KIND.key(), HELM.key());
    }
}
