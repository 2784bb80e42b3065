//! Kafka, with a topic per case and a proxy per node.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use kvcluster_node::log::settings::UNANSWERED_AFTER;
use kvcluster_node::log::{KafkaLog, KafkaLogConfig};
use kvcluster_sim::log::Cut;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{Broker, End, Memory, Node, SLOTS, Wire, eventually};
use crate::proxy::Proxy;

const KAFKA: &str = "KVCLUSTER_TEST_KAFKA";
/// Longest wait for an answer of the broker to the cases themselves.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Time between two looks whether a producer has to be given up; the product looks as often.
const CARE: Duration = Duration::from_millis(500);

static TOPICS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Kafka {
    bootstrap: String,
    topic: String,
    /// Transactions that nobody ends within the case.
    open: RefCell<Vec<FutureProducer>>,
}

impl Kafka {
    pub(crate) async fn new(case: &str) -> Self {
        let bootstrap = std::env::var(KAFKA).unwrap_or_else(|_| {
            panic!("{KAFKA} must name a Kafka of one broker, for example 127.0.0.1:19092")
        });
        let number = TOPICS.fetch_add(1, Ordering::SeqCst);
        let topic = format!("conformance.{}-{number}.{case}", std::process::id());
        let kafka = Self {
            bootstrap,
            topic,
            open: RefCell::new(Vec::new()),
        };
        kafka.make_topic().await;
        kafka
    }

    pub(crate) async fn remove(self) {
        for producer in self.open.take() {
            let ended = in_background(move || producer.abort_transaction(ANSWER_LIMIT)).await;
            ended.expect("an open transaction is given up");
        }
        self.delete_topic().await;
    }

    fn settings(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.settings().create().expect("an admin client")
    }

    /// A topic that was deleted a moment ago may still be in the way.
    async fn make_topic(&self) {
        let admin = self.admin();
        eventually("the topic is made", async || {
            let slots = i32::try_from(SLOTS).expect("few");
            let topic = NewTopic::new(&self.topic, slots, TopicReplication::Fixed(1))
                .set("max.message.bytes", "1400000");
            let made = admin.create_topics(&[topic], &AdminOptions::new()).await;
            made.expect("Kafka answers")[0].is_ok()
        })
        .await;
        let client: BaseConsumer = self.settings().create().expect("a consumer");
        let client = Arc::new(client);
        eventually("the topic is known", async || {
            let (client, topic) = (Arc::clone(&client), self.topic.clone());
            let ends = in_background(move || {
                (0..i32::try_from(SLOTS).expect("few"))
                    .all(|slot| client.fetch_watermarks(&topic, slot, ANSWER_LIMIT).is_ok())
            });
            ends.await
        })
        .await;
    }

    async fn delete_topic(&self) {
        let deleted = self
            .admin()
            .delete_topics(&[&self.topic], &AdminOptions::new())
            .await;
        deleted.expect("Kafka answers")[0]
            .as_ref()
            .expect("the topic is deleted");
    }

    async fn watermarks(&self, slot: u32) -> (i64, i64) {
        let client: BaseConsumer = self.settings().create().expect("a consumer");
        let topic = self.topic.clone();
        let ends =
            in_background(move || client.fetch_watermarks(&topic, partition(slot), ANSWER_LIMIT));
        ends.await.expect("Kafka answers")
    }

    async fn read(&self, slot: u32) -> Vec<(i64, Bytes)> {
        let mut settings = self.settings();
        settings
            .set("group.id", "conformance")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_uncommitted");
        let client: BaseConsumer = settings.create().expect("a consumer");
        let mut places = TopicPartitionList::new();
        places
            .add_partition_offset(&self.topic, partition(slot), Offset::Beginning)
            .expect("a place");
        client.assign(&places).expect("assigned");
        in_background(move || {
            let mut records = Vec::new();
            loop {
                match client.poll(ANSWER_LIMIT).expect("Kafka answers") {
                    Ok(message) => {
                        let bytes = Bytes::copy_from_slice(message.payload().unwrap_or_default());
                        records.push((message.offset(), bytes));
                    }
                    Err(_) => return records,
                }
            }
        })
        .await
    }

    async fn send(&self, producer: &FutureProducer, slot: u32, bytes: &Bytes) -> i64 {
        let record = FutureRecord::<(), [u8]>::to(&self.topic)
            .partition(partition(slot))
            .payload(bytes);
        let sent = producer.send(record, Timeout::After(ANSWER_LIMIT)).await;
        sent.expect("Kafka takes the record").offset
    }
}

impl Broker for Kafka {
    fn node(&self) -> LocalBoxFuture<'_, Node> {
        async {
            let (_, port) = self.bootstrap.rsplit_once(':').expect("host:port");
            let port = port.parse().expect("one broker, with its port");
            let proxy = Proxy::of_kafka(port).await;
            let memory = Arc::new(Memory::default());
            let looked_at = Arc::clone(&memory);
            let log = KafkaLog::start(KafkaLogConfig {
                bootstrap: format!("127.0.0.1:{}", proxy.port),
                topic: self.topic.clone(),
                client_id: "conformance".to_owned(),
                slots: SLOTS,
                memory_is_full: Box::new(move || looked_at.look()),
                report: Box::new(|_| {}),
                alive: Box::new(()),
            });
            let log = Arc::new(log.expect("the clients start"));
            let wire = KafkaWire {
                proxy,
                log: Some(Arc::clone(&log)),
            };
            Node {
                log,
                wire: Box::new(wire),
                memory,
            }
        }
        .boxed_local()
    }

    fn foreign(&self, slot: u32, bytes: Bytes) -> LocalBoxFuture<'_, i64> {
        async move {
            let producer = self.settings().create().expect("a producer");
            self.send(&producer, slot, &bytes).await
        }
        .boxed_local()
    }

    fn transaction(&self, slot: u32, bytes: Bytes, end: End) -> LocalBoxFuture<'_, i64> {
        async move {
            let number = TOPICS.fetch_add(1, Ordering::SeqCst);
            let id = format!("{}-{number}", self.topic);
            let producer: FutureProducer = self
                .settings()
                .set("transactional.id", id)
                .create()
                .expect("a producer");
            let begins = producer.clone();
            let begun = in_background(move || {
                begins.init_transactions(ANSWER_LIMIT)?;
                begins.begin_transaction()
            });
            begun.await.expect("a transaction begins");
            let offset = self.send(&producer, slot, &bytes).await;
            let ends = producer.clone();
            match end {
                End::Never => {
                    self.open.borrow_mut().push(producer);
                    return offset;
                }
                End::Commit => in_background(move || ends.commit_transaction(ANSWER_LIMIT)).await,
                End::Abort => in_background(move || ends.abort_transaction(ANSWER_LIMIT)).await,
            }
            .expect("the transaction ends");
            eventually("its marker is written", async || {
                self.watermarks(slot).await.1 >= offset + 2
            })
            .await;
            offset
        }
        .boxed_local()
    }

    fn trim(&self, slot: u32, before: i64) -> LocalBoxFuture<'_, ()> {
        async move {
            let mut places = TopicPartitionList::new();
            places
                .add_partition_offset(&self.topic, partition(slot), Offset::Offset(before))
                .expect("a place");
            let trimmed = self
                .admin()
                .delete_records(&places, &AdminOptions::new())
                .await;
            trimmed.expect("Kafka trims the log");
        }
        .boxed_local()
    }

    fn make_anew(&self) -> LocalBoxFuture<'_, ()> {
        async {
            self.delete_topic().await;
            self.make_topic().await;
        }
        .boxed_local()
    }

    fn ends(&self, slot: u32) -> LocalBoxFuture<'_, (i64, i64)> {
        self.watermarks(slot).boxed_local()
    }

    fn contents(&self, slot: u32) -> LocalBoxFuture<'_, Vec<(i64, Bytes)>> {
        self.read(slot).boxed_local()
    }
}

struct KafkaWire {
    proxy: Proxy,
    /// None when it was handed to whoever closes it.
    log: Option<Arc<KafkaLog>>,
}

impl Wire for KafkaWire {
    fn cut(&self, cut: Cut) {
        self.proxy.gate.set(cut);
    }

    fn heal(&self) {
        self.proxy.gate.set(Cut::Nothing);
    }

    fn heal_anew(&self) {
        self.proxy.gate.break_all();
        self.proxy.gate.set(Cut::Nothing);
    }

    /// What the product does while its heartbeats come back: it replaces a producer that gets no answer.
    fn give_up(&self) {
        let log = self.log.as_ref().map(Arc::downgrade).unwrap_or_default();
        tokio::spawn(async move {
            while let Some(log) = log.upgrade() {
                in_background(move || log.replace_broken_producers(UNANSWERED_AFTER)).await;
                tokio::time::sleep(CARE).await;
            }
        });
    }
}

impl Drop for KafkaWire {
    /// Closing a producer blocks.
    fn drop(&mut self) {
        let log = self.log.take();
        tokio::task::spawn_blocking(move || drop(log));
    }
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("it does not panic")
}

fn partition(slot: u32) -> i32 {
    i32::try_from(slot).expect("few")
}
