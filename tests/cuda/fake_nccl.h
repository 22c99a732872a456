#pragma once

// What tests ask of the stand-in for NCCL (fake_nccl.cpp), beside NCCL's own functions.
extern "C" {

// Called with 1 before and with 0 after the library reads and writes what it was given.
void FakeNcclOnAccess(void (*access)(int begin));
// Calls of ncclAllReduce, ncclReduce and ncclBroadcast that came to an end, on all ranks, since the last one of these.
int FakeNcclTakeCount();
// The first thing that was wrong with a call since the last one of these; "" when nothing was.
const char* FakeNcclTakeComplaint();
// From now on every collective ends in this code of NCCL's; 0: in success.
void FakeNcclFail(int code);
}
