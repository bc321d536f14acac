//! containerd-shim-uvm-v2: runs each pod in its own utility VM.
//!
//! containerd starts this program for every container ([`bootstrap`]); the first of a pod stays and serves the
//! Task API ([`task`]) for all of them. The pod's state has one owner, an actor ([`sandbox`]), which boots the
//! machine ([`sandbox::vm`]) and speaks to the agent inside it ([`agent`]).
//!
//! ```text
//! containerd ──ttrpc──► task ──commands──► sandbox actor ──► effects: layers, volumes, shared, vm, agent
//!            ◄─events── events ◄────────────────┘   ▲────── notices ──────┘
//! ```
#![forbid(unsafe_code)]

pub mod agent;
pub mod bootstrap;
pub mod config;
pub mod container;
pub mod events;
pub mod identity;
pub mod io;
pub mod layers;
pub mod metrics;
pub mod policy;
pub mod sandbox;
pub mod scratch;
pub mod shared;
pub mod sizing;
pub mod spec;
pub mod state_dir;
pub mod status;
pub mod task;
pub mod volumes;
