//! Fronts, backends and clients of the tests.

mod dice;
#[allow(dead_code)] // the tests without HTTP/2 backends need some of it
pub(crate) mod frames;
mod fronts;
mod http1;
mod http2;
#[cfg(feature = "http2")]
pub(crate) mod http2_backends;
mod memory;
mod patience;
pub(crate) mod pipes;
mod runtime;
pub(crate) mod websocket;
mod wire;

pub(crate) use self::{
    dice::Dice,
    fronts::{ask, client, front, front_on, get, mounts, ok},
    http1::{answering, backend, closing, in_two_parts, mirror, named, recording, refusing, silent},
    http2::{http2, http2_get},
    memory::Memory,
    patience::{PATIENCE, Progress, watch, within},
    pipes::Pipe,
    runtime::{elsewhere, others_run, seen_to_be_kept, settled, tasks_left, time_passes},
    wire::{Message, Wire},
};
