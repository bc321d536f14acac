//! Where trees and contents come from.

pub mod dir;
