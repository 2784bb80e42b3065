//! `kubectl` with time limits.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kvcluster_crds::NodeStatus;
use kvcluster_crds::names::PORT_ADMIN;
use serde_json::Value;

use crate::lab::Lab;
use crate::poll;
use crate::processes::{self, Ended};

/// Longest run of one `kubectl` that waits for nothing.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// More than any wait that is asked of `kubectl` itself.
const WAIT_SLACK: Duration = Duration::from_secs(10);

/// `kubectl` for one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: String,
}

impl Kubectl {
    /// For the lab's cluster.
    pub fn new(lab: &Lab) -> Result<Self> {
        Ok(Self {
            kubeconfig: lab.kubeconfig()?.to_owned(),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }

    /// Runs it; fails when it fails. Its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        processes::output(&mut self.command(arguments), COMMAND_LIMIT)
    }

    /// Runs it, which may take as long as `limit`.
    pub fn run_within(&self, limit: Duration, arguments: &[&str]) -> Result<String> {
        processes::output(&mut self.command(arguments), limit + WAIT_SLACK)
    }

    /// Runs it with a manifest as its input; it may fail.
    pub fn with_manifest(&self, arguments: &[&str], manifest: &str) -> Result<Ended> {
        let file = std::env::temp_dir().join(format!(
            "kvcluster-suite-{}-{:?}.yaml",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&file, manifest)?;
        let path = file.to_string_lossy().into_owned();
        let mut all = arguments.to_vec();
        all.extend(["-f", &path]);
        let ended = processes::run(&mut self.command(&all), COMMAND_LIMIT);
        std::fs::remove_file(&file)?;
        ended
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let ended = self.with_manifest(&["apply"], manifest)?;
        if !ended.success {
            bail!("kubectl apply failed: {}", ended.stderr);
        }
        Ok(())
    }

    /// Merges a change into an object.
    pub fn patch(&self, namespace: &str, kind: &str, name: &str, change: &Value) -> Result<()> {
        let change = change.to_string();
        let what = [
            "-n",
            namespace,
            "patch",
            kind,
            name,
            "--type=merge",
            "-p",
            &change,
        ];
        self.run(&what).map(drop)
    }

    /// One object, or none when it does not exist.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>> {
        let arguments = [
            "-n",
            namespace,
            "get",
            kind,
            name,
            "-o",
            "json",
            "--ignore-not-found",
        ];
        let text = self.run(&arguments)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .context("kubectl printed no JSON")
            .map(Some)
    }

    /// The objects of a kind with a label.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.run(&["-n", namespace, "get", kind, "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits for a condition of a `KvCluster` with `status`, for the generation that is current, and gives it.
    pub fn condition(
        &self,
        namespace: &str,
        cluster: &str,
        (kind, status): (&str, &str),
        limit: Duration,
    ) -> Result<Value> {
        poll::until(
            limit,
            &format!("{kind}={status} of {namespace}/{cluster}"),
            || {
                let object = self
                    .get(namespace, "kvcluster", cluster)?
                    .context("it does not exist")?;
                let conditions = object["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let found = conditions
                    .iter()
                    .find(|condition| condition["type"] == kind);
                let condition =
                    found.with_context(|| format!("no such condition in {conditions:?}"))?;
                let is_current =
                    condition["observedGeneration"] == object["metadata"]["generation"];
                if condition["status"] == status && is_current {
                    return Ok(Some(condition.clone()));
                }
                bail!("{condition}")
            },
        )
    }

    /// Waits until an object is gone.
    pub fn gone(&self, namespace: &str, kind: &str, name: &str, limit: Duration) -> Result<()> {
        poll::until(
            limit,
            &format!("the end of {kind} {namespace}/{name}"),
            || Ok(self.get(namespace, kind, name)?.is_none().then_some(())),
        )
    }

    /// What a node reports on its admin port, through the API server.
    pub fn node_status(&self, namespace: &str, pod: &str) -> Result<NodeStatus> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{PORT_ADMIN}/proxy/status");
        serde_json::from_str(&self.run(&["get", "--raw", &path])?).context("/status gave no status")
    }

    /// A value of a Secret.
    pub fn secret(&self, namespace: &str, name: &str, key: &str) -> Result<String> {
        let template = format!("{{{{index .data \"{key}\" | base64decode}}}}");
        let output = format!("go-template={template}");
        self.run(&["-n", namespace, "get", "secret", name, "-o", &output])
    }

    /// How often the first container of a pod was started again.
    pub fn restarts(&self, namespace: &str, pod: &str) -> Result<u64> {
        let object = self
            .get(namespace, "pod", pod)?
            .with_context(|| format!("no pod {pod}"))?;
        let restarts = object["status"]["containerStatuses"][0]["restartCount"].as_u64();
        restarts.context("the pod has no container yet")
    }

    /// Kills the first container of a pod with SIGKILL, from the machine that runs the Kubernetes nodes as containers: from
    /// inside a pod its first process cannot be killed, and deleting a pod asks it to stop first.
    pub fn kill_container(&self, namespace: &str, pod: &str) -> Result<()> {
        let object = self
            .get(namespace, "pod", pod)?
            .with_context(|| format!("no pod {pod}"))?;
        let id = object["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap_or_default();
        let id = id
            .rsplit('/')
            .next()
            .filter(|id| !id.is_empty())
            .context("the pod does not run")?;
        let process = first_process_of(id)?.with_context(|| {
            format!("no process of container {id} is seen: this test needs root on the machine of the lab")
        })?;
        let mut command = Command::new("kill");
        processes::output(command.args(["-KILL", &process]), COMMAND_LIMIT).map(drop)
    }
}

/// The process that is number 1 inside a container: with it the kernel ends all others there.
fn first_process_of(container: &str) -> Result<Option<String>> {
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process may end while the list is read.
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("cgroup").contains(container) && is_first(&read("status")) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether the innermost of a process's numbers is 1.
fn is_first(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_number_1_inside() {
        assert!(is_first("Name:\tx\nNSpid:\t18969\t812\t1\n"));
        assert!(!is_first("Name:\tx\nNSpid:\t18970\t813\t11\n"));
        assert!(!is_first("Name:\tx\n"));
    }
}
