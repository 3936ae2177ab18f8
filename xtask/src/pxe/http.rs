//! The HTTP server for UEFI HTTP boot and iPXE: the files of one folder by their exact names.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tiny_http::{Header, Method, Request, Response};

/// Answers that are being sent at once, at most: a rack's nodes boot together.
const MAX_ANSWERS: usize = 128;

/// A running server, which ends when this is dropped.
pub(super) struct Server {
    server: Arc<tiny_http::Server>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Begins to serve the files that are in a folder now.
    ///
    /// # Errors
    ///
    /// If the folder can't be listed or the address is not free.
    pub(super) fn start(address: SocketAddr, folder: &Path) -> Result<Self> {
        let files = files(folder)?;
        let server = tiny_http::Server::http(address)
            .map_err(|error| anyhow!("can't serve HTTP at {address}: {error}"))?;
        let address = server
            .server_addr()
            .to_ip()
            .context("HTTP has no address")?;
        let server = Arc::new(server);
        let thread = std::thread::spawn({
            let server = Arc::clone(&server);
            move || answer_all(&server, &files)
        });
        Ok(Self {
            server,
            address,
            thread: Some(thread),
        })
    }

    /// Returns its address.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns whether it still answers.
    pub(super) fn check(&self) -> Result<()> {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        if ended {
            return Err(anyhow!("the HTTP server at {} has ended", self.address));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// Returns the files of a folder by the path in their address.
fn files(folder: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("can't list {}", folder.display()))?
            .path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            files.insert(format!("/{name}"), path);
        }
    }
    Ok(files)
}

fn answer_all(server: &tiny_http::Server, files: &HashMap<String, PathBuf>) {
    let answers = Arc::new(AtomicUsize::new(0));
    while let Ok(request) = server.recv() {
        let path = wanted(&request, files).cloned();
        // A client that does not read holds up only its own answer.
        let busy = answers.fetch_add(1, Ordering::Relaxed) >= MAX_ANSWERS;
        let answers = Arc::clone(&answers);
        std::thread::spawn(move || {
            answer(request, path.as_deref(), busy);
            answers.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn wanted<'a>(request: &Request, files: &'a HashMap<String, PathBuf>) -> Option<&'a PathBuf> {
    matches!(request.method(), Method::Get | Method::Head)
        .then(|| files.get(request.url()))
        .flatten()
}

fn answer(request: Request, path: Option<&Path>, busy: bool) {
    // A client that went away is of no interest: it asks again.
    let _ = match path.map(File::open) {
        _ if busy => request.respond(Response::empty(503)),
        Some(Ok(file)) => {
            // UEFI 2.10, section 24.7.4: the type tells that it is a UEFI program.
            let header = Header::from_bytes("Content-Type", "application/efi");
            let response = Response::from_file(file);
            match header {
                Ok(header) => request.respond(response.with_header(header)),
                Err(()) => request.respond(response),
            }
        }
        Some(Err(_)) | None => request.respond(Response::empty(404)),
    };
}
