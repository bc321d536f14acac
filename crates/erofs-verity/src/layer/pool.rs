//! A few threads that write buffers to the file and hash their blocks.
//!
//! Buffers circulate: there is a fixed number of them, and whoever fills them waits when all are with the
//! threads. Which thread takes a buffer, and when, shows nowhere: every buffer knows its place. Threads start
//! when there is work for them, so that a small layer needs none.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::{io, mem};

use super::WriteError;
use super::leaves::Leaves;
use crate::verity::{DIGEST_SIZE, hash_blocks};
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// Bytes in a buffer.
pub(super) const BUFFER_SIZE: usize = 512 << 10;
/// Buffers beside one for each thread: one that is being filled and one that waits.
const SPARE_BUFFERS: usize = 2;

/// What the threads share.
struct Target {
    file: File,
    leaves: Leaves,
}

impl Target {
    fn store(&self, job: &Job) -> Result<(), WriteError> {
        let digests = hash(&job.bytes);
        self.file.write_all_at(&job.bytes, job.first_block * BLOCK_BYTES).map_err(WriteError::Output)?;
        self.leaves.put(job.first_block, &digests).map_err(WriteError::Spool)
    }
}

fn hash(blocks: &[u8]) -> Vec<u8> {
    let mut digests = vec![0; blocks.len() / BLOCK_SIZE * DIGEST_SIZE];
    hash_blocks(blocks, &mut digests);
    digests
}

/// Whole blocks and their place.
struct Job {
    first_block: u64,
    bytes: Vec<u8>,
}

type Returned = Result<Vec<u8>, WriteError>;

/// The threads, and the buffers that are not with them.
pub(super) struct Pool {
    target: Arc<Target>,
    max_threads: usize,
    threads: Vec<JoinHandle<()>>,
    jobs: SyncSender<Job>,
    queue: Arc<Mutex<Receiver<Job>>>,
    returned: Receiver<Returned>,
    give_back: Sender<Returned>,
    /// Buffers that have been made.
    buffers: usize,
    free: Vec<Vec<u8>>,
}

impl Pool {
    pub(super) fn new(file: File, leaves: Leaves, max_threads: usize) -> Self {
        let (jobs, queue) = sync_channel(max_threads + SPARE_BUFFERS);
        let (give_back, returned) = channel();
        Self {
            target: Arc::new(Target { file, leaves }),
            max_threads,
            threads: Vec::new(),
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            returned,
            give_back,
            buffers: 0,
            free: Vec::new(),
        }
    }

    /// An empty buffer; waits for one if all are in use. Reports what has gone wrong in the meantime.
    pub(super) fn buffer(&mut self) -> Result<Vec<u8>, WriteError> {
        while let Ok(returned) = self.returned.try_recv() {
            self.free.push(returned?);
        }
        if let Some(buffer) = self.free.pop() {
            return Ok(buffer);
        }
        if self.buffers < self.max_threads + SPARE_BUFFERS {
            self.buffers += 1;
            return Ok(Vec::with_capacity(BUFFER_SIZE));
        }
        // The pool holds a sender itself, so there is always one.
        self.returned.recv().map_err(|error| WriteError::Thread(io::Error::other(error)))?
    }

    /// Gives a buffer of whole blocks to the threads.
    pub(super) fn submit(&mut self, first_block: u64, bytes: Vec<u8>) -> Result<(), WriteError> {
        if self.threads.len() < self.max_threads {
            self.start_thread().map_err(WriteError::Thread)?;
        }
        let gone = |_| WriteError::Thread(io::Error::other("expected a thread to take a buffer, found none"));
        self.jobs.send(Job { first_block, bytes }).map_err(gone)
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let (target, queue) = (Arc::clone(&self.target), Arc::clone(&self.queue));
        let give_back = self.give_back.clone();
        let run = move || {
            loop {
                // Released before the work begins.
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(mut job) = job else { return };
                let stored = target.store(&job);
                job.bytes.clear();
                if give_back.send(stored.map(|()| job.bytes)).is_err() {
                    return;
                }
            }
        };
        self.threads.push(thread::Builder::new().name("layer-hash".into()).spawn(run)?);
        Ok(())
    }

    /// Stores the last, partly filled buffer, waits for all others, and returns the file and the digests.
    pub(super) fn finish(mut self, first_block: u64, bytes: Vec<u8>) -> Result<(File, Leaves), WriteError> {
        let last = self.target.store(&Job { first_block, bytes });
        drop(self.jobs);
        drop(self.give_back);
        for thread in mem::take(&mut self.threads) {
            thread
                .join()
                .map_err(|_| WriteError::Thread(io::Error::other("a hashing thread has panicked")))?;
        }
        self.returned.into_iter().try_for_each(|returned| returned.map(drop))?;
        last?;
        let shared =
            || WriteError::Thread(io::Error::other("expected the threads to have let go of the file"));
        let target = Arc::into_inner(self.target).ok_or_else(shared)?;
        Ok((target.file, target.leaves))
    }
}
