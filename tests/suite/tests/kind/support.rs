//! What the tests of this target share: the cluster, namespaces of their own, Kafka's tools, the sample's whole state.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use kvcluster_crds::names::ClusterNames;
use kvcluster_crds::{NodeId, NodeStatus};
use kvcluster_suite::check::{self, Rows};
use kvcluster_suite::election::{self, Leaders};
use kvcluster_suite::kube::Kubectl;
use kvcluster_suite::lab::{CLUSTER, Lab, NAMESPACE};
use kvcluster_suite::poll;
use serde_json::{Value, json};

/// Longest time from `kubectl apply` to Ready with the images present.
pub(crate) const READY_LIMIT: Duration = Duration::from_mins(1);
/// Longest time until a cluster whose parts were killed is whole again: a container's restart is delayed by up to 40 s
/// when it is killed again soon, and Kafka takes 6 to 12 s.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_mins(3);
/// Namespace of the development services.
pub(crate) const SERVICES: &str = "kvcluster-dev";
/// Namespace of the operator.
pub(crate) const OPERATOR: &str = "kvcluster-system";
/// Address of Kafka inside the cluster.
pub(crate) const KAFKA: &str = "kafka.kvcluster-dev.svc:9092";

/// The lab on kind, with `kubectl` for it.
pub(crate) fn lab() -> Result<(Lab, Kubectl)> {
    let lab = Lab::kind()?;
    let kubectl = Kubectl::new(&lab)?;
    Ok((lab, kubectl))
}

/// The lab with the sample cluster Ready.
pub(crate) fn demo() -> Result<(Lab, Kubectl)> {
    let lab = Lab::demo()?;
    let kubectl = Kubectl::new(&lab)?;
    kubectl.condition(NAMESPACE, CLUSTER, ("Ready", "True"), SETTLE_LIMIT)?;
    Ok((lab, kubectl))
}

/// The lab with the sample cluster Ready, whole and empty.
pub(crate) fn empty_demo() -> Result<(Lab, Kubectl)> {
    let (lab, kubectl) = demo()?;
    settled(&lab, &kubectl, None)?;
    check::empty(lab.service()?)?;
    Ok((lab, kubectl))
}

/// Waits until each slot of the sample has one leader among the nodes but `without`, and these have caught up.
pub(crate) fn settled(lab: &Lab, kubectl: &Kubectl, without: Option<u32>) -> Result<Leaders> {
    poll::until(
        SETTLE_LIMIT,
        "one leader for each slot, and replicas that caught up",
        || election::settled_leaders(&reports(lab, kubectl, without)?).map(Some),
    )
}

fn reports(lab: &Lab, kubectl: &Kubectl, without: Option<u32>) -> Result<Vec<NodeStatus>> {
    let nodes = lab.nodes.iter().filter(|node| Some(node.id) != without);
    nodes
        .map(|node| kubectl.node_status(NAMESPACE, &lab.names().pod(NodeId(node.id))))
        .collect()
}

/// The sample gives exactly `expected` by `/scan`, and the schema of each node comes to hold exactly that.
pub(crate) fn expect_everywhere(lab: &Lab, expected: &Rows) -> Result<()> {
    check::expect_same(&check::scan(lab.service()?)?, expected)?;
    check::expect_schemas(lab, expected)
}

/// Seconds since 1970: what chooses between equals, and names what no earlier run named.
pub(crate) fn now_seconds() -> Result<u64> {
    Ok(SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("a clock after 1970")?
        .as_secs())
}

/// A namespace of a test's own, with the Secret of PostgreSQL's administrator. It is deleted at the end.
pub(crate) struct Own {
    pub(crate) kubectl: Kubectl,
    pub(crate) namespace: String,
}

impl Own {
    /// Makes a namespace whose name no earlier run used.
    pub(crate) fn new(kubectl: &Kubectl, purpose: &str) -> Result<Self> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("a clock after 1970")?;
        let namespace = format!("{purpose}-{:x}", now.as_millis());
        // As strict as the lab's own namespaces.
        let made = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        kubectl.apply(&made.to_string())?;
        let own = Self {
            kubectl: kubectl.clone(),
            namespace,
        };
        own.admin_password("postgres")?;
        Ok(own)
    }

    /// Writes the Secret with the administrator's URL.
    pub(crate) fn admin_password(&self, password: &str) -> Result<()> {
        self.admin_secret("admin", password)
    }

    /// Writes another Secret of that kind.
    pub(crate) fn admin_secret(&self, name: &str, password: &str) -> Result<()> {
        let url = format!("postgres://postgres:{password}@postgres.{SERVICES}.svc:5432/postgres");
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": self.namespace},
            "stringData": {"url": url},
        });
        self.kubectl.apply(&secret.to_string())
    }

    /// The smallest cluster: one node, four slots, nothing kept at its deletion.
    pub(crate) fn manifest(&self, name: &str) -> Value {
        json!({
            "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvCluster",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "nodes": 1, "replication": 1, "slots": 4,
                "kafka": {"bootstrapServers": KAFKA, "replicationFactor": 1, "minInSyncReplicas": 1},
                "postgres": {"instances": [{"name": "main", "adminUrlSecret": {"name": "admin", "key": "url"}}]},
                "deletionPolicy": "Delete",
            },
        })
    }

    /// Applies a manifest and waits until it is Ready.
    pub(crate) fn bring(&self, manifest: &Value) -> Result<()> {
        self.kubectl.apply(&manifest.to_string())?;
        let name = manifest["metadata"]["name"]
            .as_str()
            .context("a manifest has a name")?;
        self.kubectl
            .condition(&self.namespace, name, ("Ready", "True"), READY_LIMIT)
            .map(drop)
    }

    /// Merges a change into a cluster's spec.
    pub(crate) fn patch(&self, name: &str, spec: &Value) -> Result<()> {
        let change = json!({ "spec": spec });
        self.kubectl
            .patch(&self.namespace, "kvcluster", name, &change)
    }

    /// Names of what belongs to a cluster here.
    pub(crate) fn names(&self, cluster: &str) -> ClusterNames {
        ClusterNames::new(&self.namespace, cluster)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let arguments = [
            "delete",
            "namespace",
            &self.namespace,
            "--wait=false",
            "--ignore-not-found",
        ];
        if let Err(error) = self.kubectl.run(&arguments) {
            eprintln!("namespace {} is left: {error:#}", self.namespace);
        }
    }
}

/// Runs Kafka's own topic tool in its pod.
pub(crate) fn topic_tool(kubectl: &Kubectl, arguments: &[&str]) -> Result<String> {
    let mut all = vec!["-n", SERVICES, "exec", "kafka-0", "-c", "kafka", "--"];
    all.extend([
        "java",
        "-Xmx64m",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        "/opt/kafka/libs/*",
    ]);
    all.extend([
        "org.apache.kafka.tools.TopicCommand",
        "--bootstrap-server",
        "127.0.0.1:9092",
    ]);
    all.extend(arguments);
    kubectl.run(&all)
}

/// The topics of a cluster that exist.
pub(crate) fn topics(kubectl: &Kubectl, names: &ClusterNames) -> Result<Vec<String>> {
    let all = topic_tool(kubectl, &["--list"])?;
    let own = [
        names.assignment_topic(),
        names.heartbeat_topic(),
        names.log_topic(),
    ];
    Ok(own
        .into_iter()
        .filter(|topic| all.lines().any(|line| line == topic))
        .collect())
}

/// The schemas and roles of that name, counted together.
pub(crate) fn schema_and_role(lab: &Lab, schema: &str) -> Result<(bool, bool)> {
    let statement = format!(
        "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{schema}'), \
         EXISTS (SELECT FROM pg_roles WHERE rolname = '{schema}')"
    );
    match check::query(lab.postgres()?, &statement)?.trim() {
        "t|t" => Ok((true, true)),
        "t|f" => Ok((true, false)),
        "f|t" => Ok((false, true)),
        "f|f" => Ok((false, false)),
        other => bail!("psql said {other:?}"),
    }
}

/// Scales a StatefulSet and waits until its pods are as many.
pub(crate) fn scale(kubectl: &Kubectl, namespace: &str, set: &str, replicas: u64) -> Result<()> {
    let count = format!("--replicas={replicas}");
    kubectl.run(&["-n", namespace, "scale", "statefulset", set, &count])?;
    poll::until_equal(
        SETTLE_LIMIT,
        &format!("{replicas} ready pods of {set}"),
        &(replicas, replicas),
        || {
            let status = kubectl
                .get(namespace, "statefulset", set)?
                .context("it exists")?["status"]
                .clone();
            let number = |field: &str| status[field].as_u64().unwrap_or(0);
            Ok((number("replicas"), number("readyReplicas")))
        },
    )
}

/// The operator's pod that works, by its name.
pub(crate) fn operator_pod(kubectl: &Kubectl) -> Result<String> {
    let pods = kubectl.list(
        OPERATOR,
        "pods",
        "app.kubernetes.io/name=kvcluster-operator",
    )?;
    let pod = pods
        .iter()
        .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let name = pod.and_then(|pod| pod["metadata"]["name"].as_str());
    name.map(str::to_owned).context("no operator runs")
}
