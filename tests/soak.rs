//! The FastCGI gateway under many connections and under nonsense: afterwards all that was taken is given back. The tests here count what
//! belongs to the whole process, so they run one after the other.
#![cfg(feature = "fastcgi")]

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fastcgi_client::{Client, soon};
use gatespan::StartResponse;
use gatespan::address::Endpoint;
use gatespan::application::{Body, Environ, Error};
use gatespan::gateway::fastcgi::{Config, serve};
use gatespan::gateway::listener::{ListenOptions, Listener};
use gatespan::protocol::fastcgi::{ProtocolStatus, RequestId, Role};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

async fn application(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    match environ.path_info() {
        b"/error" => return Err(Error::new("as it was asked to")),
        b"/wait" => std::future::pending().await,
        b"/sleep" => tokio::time::sleep(Duration::from_millis(3)).await,
        b"/read" => drop(environ.input().read_to_end(1 << 20).await?),
        _ => {}
    }
    environ.errors().line("a line");
    start_response.start("200 OK", [("Content-Type", "text/plain")])?;
    Ok(match environ.path_info() {
        b"/echo" => Body::stream(environ.take_input()),
        b"/large" => Body::iter((0..20).map(|_| vec![b'x'; 9000])),
        b"/cut" => Body::iter([Ok("some"), Err(Error::new("as it was asked to"))]),
        _ => "ok".into(),
    })
}

async fn start(config: Config) -> (PathBuf, tempfile::TempDir, CancellationToken, tokio::task::JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let listener = Listener::bind(&Endpoint::Unix(path.clone()), &ListenOptions::default()).await.unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let served = tokio::spawn(async move { serve(listener, application, config, stopped).await.unwrap() });
    (path, folder, stop, served)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One request, or none where a connection can't be had.
async fn get(path: &Path) -> Option<(String, Client<UnixStream>)> {
    let mut client = Client::new(UnixStream::connect(path).await.ok()?);
    let id = client.get("/", true);
    Some((client.answer(id).await.text(), client))
}

#[test]
fn cve_2012_6687_two_thousand_connections_at_once() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(8192, |maximum| maximum.min(8192));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).unwrap();
    assert!(wanted > 4200, "this machine allows too few descriptors for the test: {wanted}");
    runtime().block_on(async {
        let (path, _folder, stop, served) = start(Config { max_requests: 4000, ..Config::default() }).await;
        let mut clients = Vec::new();
        for _ in 0..2000 {
            clients.push(Client::new(soon(UnixStream::connect(&path)).await.unwrap()));
        }
        for client in &mut clients {
            client.get("/sleep", true);
            client.flush().await;
        }
        for client in &mut clients {
            assert!(client.answer(RequestId(1)).await.is_complete());
        }
        drop(clients);
        stop.cancel();
        soon(served).await.unwrap();
    });
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn descriptors_exhausted_and_back() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    runtime().block_on(async {
        let (path, _folder, stop, served) = start(Config::default()).await;
        setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors() as u64 + 40), ..limit }).unwrap();
        let mut held = Vec::new();
        // Our own ends take half of them.
        while let Ok(stream) = UnixStream::connect(&path).await {
            held.push(stream);
            assert!(held.len() < 100);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // One that was accepted is served while the others wait.
        let mut first = Client::new(held.remove(0));
        let id = first.get("/", true);
        assert!(first.answer(id).await.is_complete());
        held.clear();
        // Who waited longest to be accepted is served within the longest pause.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (answer, _client) = get(&path).await.expect("a descriptor is free");
        assert!(answer.starts_with("Status: 200 "));
        setrlimit(Resource::Nofile, limit).unwrap();
        drop((first, _client));
        stop.cancel();
        soon(served).await.unwrap();
    });
}

const ROUNDS: u64 = 400;

#[test]
fn after_any_nonsense_everything_is_given_back() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let runtime = runtime();
    runtime.block_on(async {
        const MOST: usize = 8;
        let config = Config { max_requests: MOST, close_timeout: Duration::from_millis(100), ..Config::default() };
        let (path, _folder, stop, served) = start(config).await;
        let (before, tasks) = (descriptors(), tokio::runtime::Handle::current().metrics().num_alive_tasks());
        for seed in 0..ROUNDS {
            // Whatever fails names its seed.
            let round = tokio::time::timeout(Duration::from_secs(10), nonsense(&path, seed)).await;
            assert!(round.is_ok(), "seed {seed} hangs");
        }
        soon(async {
            let back = || {
                let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
                descriptors() <= before && alive <= tasks
            };
            while !back() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // As many requests as there may be, and not one more: the counter is where it began.
        let mut client = Client::new(UnixStream::connect(&path).await.unwrap());
        for _ in 0..MOST {
            client.get("/wait", true);
        }
        let over = client.get("/", true);
        assert!(matches!(client.answer(over).await.end, Some((0, ProtocolStatus::Overloaded))));
        drop(client);
        soon(async {
            while get(&path).await.is_none_or(|(answer, _)| !answer.starts_with("Status: 200 ")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        stop.cancel();
        soon(served).await.unwrap();
    });
}

/// One connection with some requests, whole, cut, changed, aborted or never read, by the seed.
async fn nonsense(path: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut client = Client::new(UnixStream::connect(path).await.unwrap());
    for _ in 0..random.usize(1..6) {
        let paths = ["/", "/error", "/wait", "/sleep", "/read", "/echo", "/large", "/cut"];
        let role = if random.u8(..) < 20 { Role::Filter } else { Role::Responder };
        let length = random.usize(0..100_000).to_string();
        let params = [("PATH_INFO", paths[random.usize(..paths.len())]), ("CONTENT_LENGTH", &*length)];
        let keep = random.u8(..) > 20;
        let params = params.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let Ok(id) = client.end.begin(role, keep, params) else { break };
        if random.bool() {
            client.end.stdin(id, vec![b'x'; random.usize(0..100_000)].into());
        }
        if random.u8(..) > 60 {
            client.end.end_stdin(id);
        }
        if random.u8(..) < 60 {
            client.end.abort(id);
        }
    }
    let mut bytes = vec![0; client.end.output().len()];
    bytes::Buf::copy_to_slice(client.end.output(), &mut bytes);
    if random.bool() {
        bytes.truncate(random.usize(..=bytes.len()));
    }
    if random.u8(..) < 80 && !bytes.is_empty() {
        let at = random.usize(..bytes.len().min(400));
        bytes[at] = random.u8(..);
    }
    let (mut reader, mut writer) = client.stream.into_split();
    let pieces: Vec<usize> = (0..random.usize(1..8)).map(|_| random.usize(1..40_000)).collect();
    let half_closes = random.bool();
    let writing = async {
        let mut rest = &bytes[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            rest = later;
            if now.is_empty() || writer.write_all(now).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if half_closes {
            let _ = writer.shutdown().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    // Some are read from, some are not; all are left after a moment.
    let reads = random.bool();
    let reading = async {
        let mut block = [0; 4096];
        while reads && matches!(reader.read(&mut block).await, Ok(1..)) {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = async { let _ = tokio::time::timeout(Duration::from_millis(20), writing).await; } => {}
        () = reading => {}
    }
}
