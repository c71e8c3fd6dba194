-- No-op workers: claim, complete the jobs, claim again. Arguments: token, task type, maxJobs.
-- wrk's callbacks belong to a thread, not to a connection. The next free connection completes a claimed job.
local claim_headers, complete_headers = {}, {}
local leases, first, last = {}, 1, 0
local task_type, most, made, thread_number

function init(arguments)
  claim_headers = { ["Authorization"] = "Worker " .. arguments[1], ["Content-Type"] = "application/json" }
  task_type, most, made = arguments[2], arguments[3], 0
  math.randomseed(os.time() + tonumber(arguments[4]))
  thread_number = math.random(1, 0x7fffffff)
end

function request()
  if first <= last then
    local lease = leases[first]
    leases[first], first = nil, first + 1
    local headers = {
      ["Authorization"] = claim_headers["Authorization"],
      ["Content-Type"] = "application/json",
      ["Lease-Token"] = lease.token,
    }
    return wrk.format("PATCH", "/api/internal/geo-jobs/" .. lease.id .. "/complete", headers, '{"outputs":[]}')
  end
  made = made + 1
  local body = string.format(
    '{"claimId":"%08x-0000-4000-8000-%012x","workerId":"wrk/1","workerName":"wrk","taskTypes":["%s"],"maxJobs":%s}',
    thread_number, made, task_type, most)
  return wrk.format("POST", "/api/internal/geo-jobs/claim", claim_headers, body)
end

function response(status, headers, body)
  for id, token in string.gmatch(body, '"id":"([^"]+)".-"leaseToken":"([^"]+)"') do
    last = last + 1
    leases[last] = { id = id, token = token }
  end
end
