//! Stands between a client and a service, and can hold, lose and cut what passes.
//!
//! Kafka's clients connect to where the broker says it is: its answers are rewritten to name the proxy. Both protocols are
//! passed on frame by frame; nothing is read that the other side does not get, unless a case asks for it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvcluster_sim::log::Cut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How PostgreSQL is asked to commit.
const COMMIT: &[u8] = b"COMMIT\0";
/// Longest frame that a broker sends: a fetch of several large records.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// What passes, for all connections of a proxy.
pub(crate) struct Gate {
    cut: Mutex<Cut>,
    /// Connections of older generations end.
    generation: AtomicU64,
    /// New connections are closed at once.
    closed: AtomicBool,
    /// The answer to the next commit is lost.
    loses_commit: AtomicBool,
    changed: Notify,
}

/// A proxy; it ends with this.
pub(crate) struct Proxy {
    pub(crate) gate: Arc<Gate>,
    pub(crate) port: u16,
    accepting: JoinHandle<()>,
}

/// What is spoken through a proxy.
#[derive(Clone, Copy)]
enum Speech {
    Kafka { proxy: u16, broker: u16 },
    Postgres,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Requests,
    Answers,
}

impl Proxy {
    pub(crate) async fn of_kafka(broker: u16) -> Self {
        Self::start(broker, |proxy| Speech::Kafka { proxy, broker }).await
    }

    pub(crate) async fn of_postgres(server: u16) -> Self {
        Self::start(server, |_| Speech::Postgres).await
    }

    async fn start(to: u16, speech: impl FnOnce(u16) -> Speech) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let gate = Arc::new(Gate {
            cut: Mutex::new(Cut::Nothing),
            generation: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            loses_commit: AtomicBool::new(false),
            changed: Notify::new(),
        });
        let accepting = tokio::spawn(accept(listener, to, speech(port), Arc::clone(&gate)));
        Self {
            gate,
            port,
            accepting,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.gate.break_all();
    }
}

impl Gate {
    pub(crate) fn set(&self, cut: Cut) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
        self.changed.notify_waiters();
    }

    /// Ends every connection, and loses what it held.
    pub(crate) fn break_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// A closed gate takes no connection, and ends those that are.
    pub(crate) fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
        if closed {
            self.break_all();
        }
    }

    /// The next commit takes effect, and its answer is lost with the connection.
    pub(crate) fn lose_commit(&self) {
        self.loses_commit.store(true, Ordering::SeqCst);
    }

    /// Whether a commit is still to be lost.
    pub(crate) fn waits_for_commit(&self) -> bool {
        self.loses_commit.load(Ordering::SeqCst)
    }

    fn holds(&self, way: Way) -> bool {
        let cut = *self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        match way {
            Way::Requests => matches!(cut, Cut::Requests | Cut::Both),
            Way::Answers => matches!(cut, Cut::Answers | Cut::Both),
        }
    }

    /// Waits until something may pass; false when the connection is to end.
    async fn passes(&self, way: Way, generation: u64) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.generation.load(Ordering::SeqCst) != generation {
                return false;
            }
            if !self.holds(way) {
                return true;
            }
            changed.await;
        }
    }

    async fn until_broken(&self, generation: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.generation.load(Ordering::SeqCst) != generation {
                return;
            }
            changed.await;
        }
    }
}

async fn accept(listener: TcpListener, to: u16, speech: Speech, gate: Arc<Gate>) {
    while let Ok((client, _)) = listener.accept().await {
        if gate.closed.load(Ordering::SeqCst) {
            continue;
        }
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else {
                return;
            };
            // Frames are small and wait for each other.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let generation = gate.generation.load(Ordering::SeqCst);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let committing = AtomicBool::new(false);
            let pump = |from, to, way| {
                Pump {
                    from,
                    to,
                    way,
                    speech,
                    gate: &gate,
                    generation,
                    committing: &committing,
                }
                .run()
            };
            let requests = pump(from_client, to_server, Way::Requests);
            let answers = pump(from_server, to_client, Way::Answers);
            tokio::select! {
                _ = async { tokio::join!(requests, answers) } => {}
                () = gate.until_broken(generation) => {}
            }
        });
    }
}

/// One way of a connection.
struct Pump<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Way,
    speech: Speech,
    gate: &'a Gate,
    generation: u64,
    /// Whether the next answer is that to a commit which is to be lost.
    committing: &'a AtomicBool,
}

impl Pump<'_> {
    /// Passes frames on until one side ends. What a client sent before it went is still passed on; what a server answers to
    /// a client that is gone is read and dropped, so that the server goes on to work.
    async fn run(mut self) -> io::Result<()> {
        let mut gone = false;
        loop {
            let frame = self.frame().await?;
            if !self.gate.passes(self.way, self.generation).await {
                return Ok(());
            }
            match self.way {
                Way::Answers if self.committing.load(Ordering::SeqCst) => {
                    self.gate.loses_commit.store(false, Ordering::SeqCst);
                    return Ok(());
                }
                Way::Answers => {
                    gone = gone || self.to.write_all(&frame).await.is_err();
                }
                Way::Requests => {
                    let last = self.is_commit_to_lose(&frame);
                    self.committing.store(last, Ordering::SeqCst);
                    self.to.write_all(&frame).await?;
                    if last {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn frame(&mut self) -> io::Result<Vec<u8>> {
        match self.speech {
            Speech::Postgres => some_bytes(&mut self.from).await,
            Speech::Kafka { proxy, broker } => {
                let mut frame = kafka_frame(&mut self.from).await?;
                if self.way == Way::Answers {
                    rename(&mut frame, broker, proxy);
                }
                Ok(frame)
            }
        }
    }

    fn is_commit_to_lose(&self, frame: &[u8]) -> bool {
        matches!(self.speech, Speech::Postgres)
            && self.gate.loses_commit.load(Ordering::SeqCst)
            && frame.windows(COMMIT.len()).any(|part| part == COMMIT)
    }
}

async fn kafka_frame(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.resize(4 + length, 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

async fn some_bytes(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 65_536];
    let count = from.read(&mut bytes).await?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.truncate(count);
    Ok(bytes)
}

/// A broker's address stands in its answers as its host and its port, whatever the version of the answer.
fn rename(frame: &mut [u8], broker: u16, proxy: u16) {
    let address = |port: u16| [b"127.0.0.1".as_slice(), &u32::from(port).to_be_bytes()].concat();
    let (old, new) = (address(broker), address(proxy));
    let places: Vec<usize> = (0..frame.len().saturating_sub(old.len() - 1))
        .filter(|place| frame[*place..].starts_with(&old))
        .collect();
    for place in places {
        frame[place..place + new.len()].copy_from_slice(&new);
    }
}
