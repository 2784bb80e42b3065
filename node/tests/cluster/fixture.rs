//! A cluster of processes: what the operator would make for it, made by hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvcluster_crds::names::ClusterNames;
use kvcluster_crds::slot::slot_of_key;
use kvcluster_crds::{
    Assignment, LogId, NodeEntry, NodeId, NodeStatus, Offset as KvOffset, SlotAssignment, SlotRole,
};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const KAFKA: &str = "KVCLUSTER_TEST_KAFKA";
const POSTGRES: &str = "KVCLUSTER_TEST_POSTGRES_URL";
/// Ports for nodes, below those that Linux gives to outgoing connections.
const PORT_FIRST: u16 = 20_000;
const PORTS: u32 = 9_000;
const LOOK: Duration = Duration::from_millis(10);
const HTTP_TIMEOUT: Duration = Duration::from_secs(15);
static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// What became of a write, by what the node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Nothing,
    Unknown,
}

pub(crate) struct Cluster {
    kafka: String,
    postgres: String,
    names: ClusterNames,
    slots: u32,
    settings: Vec<String>,
    directory: PathBuf,
    runtime: tokio::runtime::Runtime,
    nodes: Vec<Node>,
    /// Assignments that were published.
    published: AtomicU64,
}

struct Node {
    rest: u16,
    admin: u16,
    process: Mutex<Option<Child>>,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Cluster {
    /// Makes topics, schemas and the assignment, and starts the nodes.
    pub(crate) fn start(nodes: usize, slots: u32) -> Self {
        Self::start_with(nodes, slots, &[])
    }

    /// The same, with more arguments for each node.
    pub(crate) fn start_with(nodes: usize, slots: u32, settings: &[&str]) -> Self {
        let variable = |name: &str, example: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} must be set, for example {example}"))
        };
        let number = CLUSTERS.fetch_add(1, Ordering::SeqCst);
        let name = format!("t{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(format!("kvcluster-{name}"));
        std::fs::create_dir_all(&directory).expect("a directory for logs");
        println!("logs are in {}", directory.display());
        let cluster = Self {
            kafka: variable(KAFKA, "127.0.0.1:19092"),
            postgres: variable(
                POSTGRES,
                "postgres://postgres:postgres@127.0.0.1:15432/postgres",
            ),
            names: ClusterNames::new("test", name),
            slots,
            settings: settings.iter().map(|&text| text.to_owned()).collect(),
            directory,
            runtime: tokio::runtime::Runtime::new().expect("a runtime"),
            nodes: (0..nodes)
                .map(|_| Node {
                    rest: free_port(),
                    admin: free_port(),
                    process: Mutex::new(None),
                })
                .collect(),
            published: AtomicU64::new(0),
        };
        cluster.runtime.block_on(cluster.make_schemas());
        for node in 0..nodes {
            cluster.restart(node);
        }
        // The nodes wait for what is made only now.
        cluster.runtime.block_on(cluster.make_topics());
        cluster.publish();
        cluster
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    async fn make_topics(&self) {
        let admin = self.admin();
        let names = [
            (self.names.log_topic(), self.slots),
            (self.names.assignment_topic(), 1),
            (self.names.heartbeat_topic(), 1),
        ];
        let topics = names.iter().map(|(name, partitions)| {
            let partitions = i32::try_from(*partitions).expect("few");
            NewTopic::new(name, partitions, TopicReplication::Fixed(1))
                .set("max.message.bytes", "1400000")
        });
        let topics: Vec<_> = topics.collect();
        let made = admin
            .create_topics(&topics, &AdminOptions::new())
            .await
            .expect("Kafka answers");
        for topic in made {
            topic.expect("the topic is made");
        }
    }

    async fn delete_topics(&self) {
        let admin = self.admin();
        let names = [
            self.names.log_topic(),
            self.names.assignment_topic(),
            self.names.heartbeat_topic(),
        ];
        let names = names.each_ref().map(String::as_str);
        let _ = admin.delete_topics(&names, &AdminOptions::new()).await;
    }

    fn schema(&self, node: usize) -> String {
        self.names.schema("kvt", node_id(node))
    }

    async fn make_schemas(&self) {
        for node in 0..self.nodes.len() {
            let schema = self.schema(node);
            self.sql(format!(
                "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"
            ))
            .await;
        }
    }

    async fn sql(&self, text: String) {
        let mut connection = PgConnection::connect(&self.postgres)
            .await
            .expect("PostgreSQL answers");
        sqlx::raw_sql(AssertSqlSafe(text))
            .execute(&mut connection)
            .await
            .expect("a statement");
    }

    /// Publishes that all nodes replicate all slots, each preferring another leader.
    fn publish(&self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.assign(&all, &[]);
    }

    /// Publishes the next assignment, of which each is the first record of its own: every slot has these voters and learners.
    pub(crate) fn assign(&self, voters: &[usize], learners: &[usize]) {
        let version = self.published.fetch_add(1, Ordering::SeqCst) + 1;
        let nodes = (0..self.nodes.len()).map(|node| NodeEntry {
            id: node_id(node),
            address: format!("127.0.0.1:{}", self.nodes[node].rest),
            postgres_instance: "main".to_owned(),
            leaving: false,
        });
        let slots = (0..self.slots as usize).map(|slot| {
            let turn = slot % voters.len();
            let turned = voters[turn..].iter().chain(&voters[..turn]);
            let voters: Vec<_> = turned.map(|node| node_id(*node)).collect();
            SlotAssignment {
                preferred_leader: voters[0],
                voters,
                learners: learners.iter().map(|node| node_id(*node)).collect(),
            }
        });
        let assignment = Assignment {
            version,
            based_on: (version > 1).then(|| KvOffset(i64::try_from(version).expect("few") - 2)),
            cluster_uid: self.names.cluster().to_owned(),
            log_id: LogId(1),
            log_version: 1,
            next_node: NodeId(0),
            slots: slots.collect(),
            nodes: nodes.collect(),
        };
        self.produce(&self.names.assignment_topic(), 0, &assignment.encode());
    }

    /// Whether these nodes, and no others, say that they have replicas, all of them caught up.
    pub(crate) fn has_replicas(&self, nodes: &[usize]) -> bool {
        (0..self.nodes.len()).all(|node| {
            if nodes.contains(&node) {
                return self.is_caught_up(node);
            }
            self.status(node)
                .is_some_and(|status| status.slots.is_empty())
        })
    }

    fn produce(&self, topic: &str, partition: i32, bytes: &[u8]) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .create()
            .expect("a producer");
        let record = BaseRecord::<(), _>::to(topic)
            .partition(partition)
            .payload(bytes);
        producer.send(record).expect("queued");
        producer.flush(Duration::from_secs(10)).expect("published");
    }

    /// Appends some bytes to the log of a slot, as anybody could.
    pub(crate) fn append(&self, slot: u32, bytes: &[u8]) {
        let partition = i32::try_from(slot).expect("few");
        self.produce(&self.names.log_topic(), partition, bytes);
    }

    /// Removes the records of a slot that stand before an offset.
    pub(crate) fn trim(&self, slot: u32, first: i64) {
        let mut places = TopicPartitionList::new();
        let partition = i32::try_from(slot).expect("few");
        places
            .add_partition_offset(&self.names.log_topic(), partition, Offset::Offset(first))
            .expect("a place");
        let options = AdminOptions::new();
        let admin = self.admin();
        let trimmed = admin.delete_records(&places, &options);
        self.runtime.block_on(trimmed).expect("Kafka answers");
    }

    /// The first record that the log of a slot still has.
    pub(crate) fn log_start(&self, slot: u32) -> i64 {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .create()
            .expect("a consumer");
        let partition = i32::try_from(slot).expect("few");
        let ends = client.fetch_watermarks(&self.names.log_topic(), partition, HTTP_TIMEOUT);
        ends.expect("Kafka answers").0
    }

    /// Empties the schema of a node that does not run.
    pub(crate) fn lose_schema(&self, node: usize) {
        let schema = self.schema(node);
        let statement = format!("DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}");
        self.runtime.block_on(self.sql(statement));
    }

    /// Deletes the log topic and makes it again.
    pub(crate) fn make_log_anew(&self) {
        let topic = self.names.log_topic();
        let admin = self.admin();
        let options = AdminOptions::new();
        let partitions = i32::try_from(self.slots).expect("few");
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
        self.runtime.block_on(async {
            let deleted = admin.delete_topics(&[&topic], &options).await;
            assert!(deleted.expect("Kafka answers").iter().all(Result::is_ok));
        });
        // Kafka deletes in its own time.
        self.wait_until(HTTP_TIMEOUT, || {
            let made = self.runtime.block_on(admin.create_topics([&new], &options));
            made.expect("Kafka answers").iter().all(Result::is_ok)
        });
    }

    /// Whether everything that a replica has applied is in PostgreSQL for good.
    pub(crate) fn is_durable(&self, node: usize, slot: u32) -> bool {
        let status = self.status(node);
        let found =
            status.and_then(|status| status.slots.into_iter().find(|found| found.slot.0 == slot));
        found.is_some_and(|slot| slot.durable == slot.applied)
    }

    /// The same of all its replicas.
    pub(crate) fn is_all_durable(&self, node: usize) -> bool {
        (0..self.slots).all(|slot| self.is_durable(node, slot))
    }

    /// Rows that a node's process has taken over from others.
    pub(crate) fn restored_rows(&self, node: usize) -> u64 {
        let answer = request(self.nodes[node].admin, "GET", "/metrics");
        let answer = answer.unwrap_or_else(|_| panic!("node {node} tells its metrics"));
        let text = String::from_utf8(answer.body).expect("text");
        let line = text
            .lines()
            .find(|line| line.starts_with("kvcluster_restored_rows_total "));
        let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        number.expect("a number")
    }

    /// Keys, values and versions in the schema of a node.
    pub(crate) fn pairs(&self, node: usize) -> Vec<(Vec<u8>, Vec<u8>, i64)> {
        let schema = self.schema(node);
        let statement = format!("SELECT key, value, version FROM {schema}.kv ORDER BY slot, key");
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.postgres)
                .await
                .expect("PostgreSQL answers");
            sqlx::query_as(AssertSqlSafe(statement))
                .fetch_all(&mut connection)
                .await
                .expect("rows")
        })
    }

    /// Rows in the schema of a node.
    pub(crate) fn rows(&self, node: usize) -> usize {
        let statement = format!("SELECT count(*) FROM {}.kv", self.schema(node));
        let count: i64 = self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.postgres)
                .await
                .expect("PostgreSQL answers");
            sqlx::query_scalar(AssertSqlSafe(statement))
                .fetch_one(&mut connection)
                .await
                .expect("a count")
        });
        usize::try_from(count).expect("not negative")
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .create()
            .expect("an admin client")
    }

    /// Starts the process of a node that has none.
    pub(crate) fn restart(&self, node: usize) {
        let Node {
            rest,
            admin,
            process,
        } = &self.nodes[node];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("node-{node}.log")))
            .expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_kvcluster-node"))
            .arg(format!("--cluster={}", self.names.cluster()))
            .arg(format!("--namespace={}", self.names.namespace()))
            .arg(format!("--cluster-uid={}", self.names.cluster()))
            .arg(format!("--node-id={node}"))
            .arg(format!("--slots={}", self.slots))
            .arg("--log-id=0000000000000001")
            .arg(format!("--kafka-bootstrap={}", self.kafka))
            .arg(format!("--postgres-url={}", self.postgres))
            .arg(format!("--postgres-schema={}", self.schema(node)))
            .arg(format!("--listen=127.0.0.1:{rest}"))
            .arg(format!("--admin-listen=127.0.0.1:{admin}"))
            .args(&self.settings)
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the node starts");
        *process.lock().expect("no panic") = Some(child);
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, node: usize) {
        let mut child = self.nodes[node]
            .process
            .lock()
            .expect("no panic")
            .take()
            .expect("runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    /// SIGTERM; whether the process ended well.
    pub(crate) fn terminate(&self, node: usize) -> bool {
        let process = self.nodes[node].process.lock().expect("no panic").take();
        let mut child = process.expect("runs");
        let sent = Command::new("kill")
            .arg("-TERM")
            .arg(child.id().to_string())
            .status();
        assert!(sent.expect("kill runs").success());
        child.wait().expect("ended").success()
    }

    pub(crate) fn wait_until(&self, patience: Duration, fits: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !fits() {
            let logs = self.directory.display();
            assert!(
                begun.elapsed() < patience,
                "waited in vain; logs are in {logs}"
            );
            thread::sleep(LOOK);
        }
        begun.elapsed()
    }

    pub(crate) fn wait_until_led(&self, patience: Duration) -> Duration {
        self.wait_until(patience, || self.led_by(|_| true))
    }

    pub(crate) fn wait_until_led_without(&self, node: usize, patience: Duration) -> Duration {
        self.wait_until(patience, || self.led_by(|leader| leader != node))
    }

    /// Whether node leads the slots that it should lead.
    pub(crate) fn leads_preferred(&self, node: usize) -> bool {
        self.status(node).is_some_and(|status| {
            let preferred = |slot: u32| slot as usize % self.nodes.len() == node;
            let slots = status.slots.iter().filter(|slot| preferred(slot.slot.0));
            let leads = slots.filter(|slot| slot.role == SlotRole::Leader).count();
            leads == (0..self.slots).filter(|slot| preferred(*slot)).count()
        })
    }

    /// Whether all replicas of a node have read their logs to the end.
    pub(crate) fn is_caught_up(&self, node: usize) -> bool {
        self.status(node).is_some_and(|status| {
            status.slots.len() == self.slots as usize
                && status.slots.iter().all(|slot| slot.caught_up)
        })
    }

    /// Whether node leads the slot of a key.
    pub(crate) fn leads(&self, node: usize, key: &str) -> bool {
        let slot = slot_of_key(key.as_bytes(), self.slots);
        self.status(node).is_some_and(|status| {
            let mut slots = status.slots.iter();
            slots.any(|known| known.slot == slot && known.role == SlotRole::Leader)
        })
    }

    /// Requests that a node has sent on to others.
    pub(crate) fn forwards(&self, node: usize) -> u64 {
        let answer = request(self.nodes[node].admin, "GET", "/metrics");
        let body = answer
            .unwrap_or_else(|_| panic!("node {node} answers"))
            .body;
        let text = String::from_utf8(body).expect("text");
        let lines = text
            .lines()
            .filter(|line| line.starts_with("kvcluster_http_forwards_total{"));
        let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        counts.sum()
    }

    /// The value of a key, none when it is absent; none of both when the node does not answer.
    #[expect(clippy::option_option, reason = "no answer, or no value")]
    pub(crate) fn get_with(&self, node: usize, key: &str, headers: &str) -> Option<Option<String>> {
        let path = format!("/key/{key}");
        let answer = request_with(self.nodes[node].rest, "GET", &path, headers).ok()?;
        let text = || String::from_utf8(answer.body).expect("text");
        match answer.status {
            200 => Some(Some(text())),
            404 => Some(None),
            _ => None,
        }
    }

    fn led_by(&self, fits: impl Fn(usize) -> bool) -> bool {
        let running = (0..self.nodes.len()).filter(|node| fits(*node));
        let leads: usize = running
            .filter_map(|node| self.status(node))
            .map(|status| {
                status
                    .slots
                    .iter()
                    .filter(|slot| slot.role == SlotRole::Leader)
                    .count()
            })
            .sum();
        leads == self.slots as usize
    }

    /// Whether all replicas stand at the same places, and PostgreSQL has everything.
    pub(crate) fn agree(&self) -> bool {
        let all: Vec<_> = (0..self.nodes.len())
            .map(|node| self.status(node))
            .collect();
        let places = |status: &NodeStatus| -> Vec<i64> {
            status.slots.iter().map(|slot| slot.applied).collect()
        };
        let Some(Some(first)) = all.first() else {
            return false;
        };
        all.iter().all(|status| {
            status.as_ref().is_some_and(|status| {
                status.slots.len() == self.slots as usize && places(status) == places(first)
            })
        })
    }

    pub(crate) fn status(&self, node: usize) -> Option<NodeStatus> {
        let answer = request(self.nodes[node].admin, "GET", "/status").ok()?;
        serde_json::from_slice(&answer.body).ok()
    }

    pub(crate) fn put(&self, node: usize, key: &str, value: &str) -> Outcome {
        self.put_with(node, key, value, "")
    }

    /// The same with an idempotency key.
    pub(crate) fn put_named(&self, node: usize, key: &str, value: &str, name: &str) -> Outcome {
        self.put_with(node, key, value, &format!("Idempotency-Key: {name}\r\n"))
    }

    fn put_with(&self, node: usize, key: &str, value: &str, headers: &str) -> Outcome {
        let path = format!("/key/{key}?value={value}");
        match request_with(self.nodes[node].rest, "PUT", &path, headers) {
            Ok(Answer { status: 200, .. }) => Outcome::Done,
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                if body.contains("\"effect\":\"none\"") {
                    Outcome::Nothing
                } else {
                    Outcome::Unknown
                }
            }
            Err(Failed::NotConnected) => Outcome::Nothing,
            Err(Failed::Broken) => Outcome::Unknown,
        }
    }

    pub(crate) fn put_surely(&self, node: usize, key: &str, value: &str) {
        self.wait_until(HTTP_TIMEOUT, || self.put(node, key, value) == Outcome::Done);
    }

    pub(crate) fn scan(&self, node: usize) -> BTreeMap<String, String> {
        let answer = request(self.nodes[node].rest, "GET", "/scan");
        let answer = answer.unwrap_or_else(|_| panic!("node {node} answers a scan"));
        assert_eq!(answer.status, 200);
        serde_json::from_slice(&answer.body).expect("an object of texts")
    }

    pub(crate) fn decode_log(&self) -> serde_json::Value {
        serde_json::from_slice(&self.decode(&[])).expect("JSON")
    }

    /// The values of all puts that count.
    pub(crate) fn values_in_log(&self) -> Vec<String> {
        let lines = self.decode(&["--effects"]);
        let lines = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let change = |line| serde_json::from_slice::<serde_json::Value>(line).expect("JSON");
        let values = lines.filter_map(|line| Some(change(line)["value"].as_str()?.to_owned()));
        values.collect()
    }

    fn decode(&self, options: &[&str]) -> Vec<u8> {
        let topic = self.names.log_topic();
        let output = Command::new(env!("CARGO_BIN_EXE_kvcluster-node"))
            .args(["decode-log", "--bootstrap", &self.kafka, "--topic", &topic])
            .args(options)
            .output()
            .expect("the program runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// Ends all nodes and removes what was made.
    pub(crate) fn stop_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.kill(node);
        }
        self.runtime.block_on(async {
            self.delete_topics().await;
            for node in 0..self.nodes.len() {
                self.sql(format!("DROP SCHEMA {} CASCADE", self.schema(node)))
                    .await;
            }
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Ok(mut process) = node.process.lock()
                && let Some(mut child) = process.take()
            {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

enum Failed {
    NotConnected,
    Broken,
}

fn request(port: u16, method: &str, path: &str) -> Result<Answer, Failed> {
    request_with(port, method, path, "")
}

/// With further headers, each with its end of line.
fn request_with(port: u16, method: &str, path: &str, headers: &str) -> Result<Answer, Failed> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|_| Failed::NotConnected)?;
    stream
        .set_read_timeout(Some(HTTP_TIMEOUT))
        .map_err(|_| Failed::NotConnected)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    );
    stream
        .write_all(head.as_bytes())
        .map_err(|_| Failed::Broken)?;
    read_answer(stream).map_err(|_| Failed::Broken)
}

fn read_answer(stream: TcpStream) -> std::io::Result<Answer> {
    let broken = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .ok_or_else(broken)?;
    let mut chunked = false;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        chunked |= line
            .to_ascii_lowercase()
            .starts_with("transfer-encoding: chunked");
        if line == "\r\n" || line.is_empty() {
            break;
        }
    }
    let mut body = Vec::new();
    if !chunked {
        reader.read_to_end(&mut body)?;
        return Ok(Answer { status, body });
    }
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).map_err(|_| broken())?;
        if length == 0 {
            return Ok(Answer { status, body });
        }
        (&mut reader).take(length).read_to_end(&mut body)?;
        reader.read_line(&mut String::new())?;
    }
}

/// A port that nobody listens on, and that this process was never given before. Not one that the system gives to outgoing
/// connections: between now and the node's start some client would get it.
fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % PORTS).expect("few");
    let ports = u16::try_from(PORTS).expect("few");
    let mut candidates = (0..ports).map(|_| {
        let next = GIVEN.fetch_add(1, Ordering::Relaxed);
        PORT_FIRST + (begin + next) % ports
    });
    let free = candidates.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a free port")
}

fn node_id(node: usize) -> NodeId {
    NodeId(u32::try_from(node).expect("few"))
}
