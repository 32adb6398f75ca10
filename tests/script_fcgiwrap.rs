//! fcgiwrap with the table of requests that Gatespan's host of scripts has to pass: where the two differ, the table says
//! how and why, and so does docs/fcgiwrap.md.

mod support;

use support::scripts::{self, Host, Pass, Socket};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_closed_each_time() {
    let name = "fcgiwrap/nginx/unix/closed/streamed";
    scripts::rows(&scripts::nginx(
        name,
        Host::Fcgiwrap,
        Socket::Unix,
        "nginx/scripts_closed.conf",
        Pass::AnswersStreamed,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_kept_and_buffered() {
    let name = "fcgiwrap/nginx/tcp/kept/buffered";
    scripts::rows(&scripts::nginx(name, Host::Fcgiwrap, Socket::Tcp, "nginx/scripts_kept.conf", Pass::Collected)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_apache() {
    scripts::rows(&scripts::apache("fcgiwrap/apache/unix", Host::Fcgiwrap, Socket::Unix)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_lighttpd() {
    scripts::rows(&scripts::lighttpd("fcgiwrap/lighttpd/streamed", Host::Fcgiwrap, "2")).await;
}
