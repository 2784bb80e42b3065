//! What only a real connection shows: long targets, bodies of `HEAD`, streams that break, the stop.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::effect::VALUE_BYTES_MAX;

/// Sends a request and reads its answer by its `content-length`.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> (u16, Vec<u8>) {
    stream.write_all(request).await.expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8(head).expect("text");
    let status = head[9..12].parse().expect("a status");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let bodiless = request.starts_with(b"HEAD");
    let length = length
        .filter(|_| !bodiless)
        .map_or(0, |text| text.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    (status, body)
}

#[tokio::test]
async fn the_largest_value_goes_in_by_the_classic_route() {
    let node = Node::new();
    let mut stream = TcpStream::connect(node.listen().await)
        .await
        .expect("connects");
    let put = |value: &str| format!("PUT /key/big?value={value} HTTP/1.1\r\nhost: h\r\n\r\n");
    let get = b"GET /key/big HTTP/1.1\r\nhost: h\r\n\r\n";
    // Two bytes per character, each of them encoded: 3 MiB.
    let value = "é".repeat(VALUE_BYTES_MAX / 2);
    let answer = exchange(
        &mut stream,
        put(&"%C3%A9".repeat(VALUE_BYTES_MAX / 2)).as_bytes(),
    )
    .await;
    assert_eq!(answer, (200, b"PUT success".to_vec()));
    let found = exchange(&mut stream, get).await;
    assert!(
        found == (200, value.into_bytes()),
        "the value comes back whole"
    );
    for too_long in [
        "a".repeat(VALUE_BYTES_MAX + 1),
        "a".repeat(4 * VALUE_BYTES_MAX),
    ] {
        let (status, body) = exchange(&mut stream, put(&too_long).as_bytes()).await;
        assert_eq!(
            (
                status,
                String::from_utf8_lossy(&body).contains("value_too_long")
            ),
            (413, true)
        );
    }
    assert_eq!(exchange(&mut stream, put("small").as_bytes()).await.0, 200);
    assert_eq!(exchange(&mut stream, get).await, (200, b"small".to_vec()));
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let node = Node::new();
    node.send("PUT", "/key/a?value=12345").await;
    let mut stream = TcpStream::connect(node.listen().await)
        .await
        .expect("connects");
    for (target, status) in [("/key/a", 200), ("/key/none", 404), ("/scan", 200)] {
        let request = format!("HEAD {target} HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(
            exchange(&mut stream, request.as_bytes()).await,
            (status, vec![]),
            "{target}"
        );
    }
    let get = b"GET /key/a HTTP/1.1\r\nhost: h\r\n\r\n";
    assert_eq!(
        exchange(&mut stream, get).await,
        (200, b"12345".to_vec()),
        "still in step"
    );
}

#[tokio::test]
async fn a_broken_scan_is_seen_on_the_wire() {
    let node = Node::new();
    for number in 0..2_000 {
        node.send("PUT", &format!("/key/k{number}?value=v")).await;
    }
    let address = node.listen().await;
    let scan = async || {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        let request = b"GET /scan HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.expect("sends");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    assert!(scan().await.ends_with(b"}\r\n0\r\n\r\n"));
    node.slots.store.breaks_scans.store(true, Ordering::Relaxed);
    let broken = scan().await;
    let refused = broken.starts_with(b"HTTP/1.1 503");
    assert!(
        refused || !broken.ends_with(b"0\r\n\r\n"),
        "it must not end well-formed"
    );
}

#[tokio::test]
async fn a_stop_lets_running_requests_finish_and_takes_no_new_ones() {
    let node = Node::new();
    node.slots.move_all(&Place::Nobody);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let ending = Ending::default();
    let serving = tokio::spawn(serve(listener, node.routers.rest.clone(), ending.clone()));
    let mut idle = TcpStream::connect(address).await.expect("connects");
    let mut busy = TcpStream::connect(address).await.expect("connects");
    busy.write_all(b"PUT /key/a?value=1 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .expect("sends");
    while node.slots.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    ending.stop.cancel();
    assert_eq!(
        idle.read(&mut [0; 16]).await.expect("ends"),
        0,
        "idle connections are closed"
    );
    node.slots.move_all(&Place::Here);
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("PUT success"),
        "{answer}"
    );
    serving.await.expect("ends");
    TcpStream::connect(address)
        .await
        .expect_err("nobody listens");
}

#[tokio::test]
async fn a_server_that_leaves_answers_and_asks_to_go_elsewhere() {
    let node = Node::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let ending = Ending::default();
    tokio::spawn(serve(listener, node.routers.rest.clone(), ending.clone()));
    let mut kept = TcpStream::connect(address).await.expect("connects");
    let put = b"PUT /key/a?value=1 HTTP/1.1\r\nhost: h\r\n\r\n";
    assert_eq!(exchange(&mut kept, put).await.0, 200);
    ending.leaving.cancel();
    for mut stream in [kept, TcpStream::connect(address).await.expect("connects")] {
        stream.write_all(put).await.expect("sends");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .expect("an answer, and the end");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}
